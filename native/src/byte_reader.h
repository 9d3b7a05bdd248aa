// Reads a program's bytes, little endian, never past their end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "refusal.h"

namespace mq {

// Whether bytes are UTF-8 as RFC 3629 has it (shortest forms, no surrogates, nothing above U+10FFFF), free of control
// characters: a zero byte would end a message, and a line break would break it.
inline bool is_plain_utf8(const uint8_t* bytes, size_t count) {
  for (size_t at = 0; at < count;) {
    const uint8_t first = bytes[at];
    if (first < 0x20 || (first >= 0x7F && first < 0xC2) || first > 0xF4) return false;
    const size_t more = first < 0x80 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    if (more >= count - at) return false;
    uint32_t point = more == 0 ? first : first & (0x3Fu >> more);
    for (size_t next = 1; next <= more; ++next) {
      if ((bytes[at + next] & 0xC0) != 0x80) return false;
      point = point << 6 | (bytes[at + next] & 0x3Fu);
    }
    const bool longer_than_needed = (more == 2 && point < 0x800) || (more == 3 && point < 0x10000);
    if (longer_than_needed || (point >= 0xD800 && point < 0xE000) || point > 0x10FFFF) return false;
    at += more + 1;
  }
  return true;
}

class ByteReader {
 public:
  ByteReader(const uint8_t* bytes, size_t count) : bytes_(bytes), count_(count) {}

  // What is being read, for messages.
  void enter(std::string place) { place_ = std::move(place); }
  const std::string& place() const { return place_; }

  size_t remaining() const { return count_ - at_; }

  // Refuses unless `count` items of `size` bytes are left: before anything is allocated for them.
  void need(uint64_t count, size_t size, const char* what) const {
    if (count > remaining() / size) {
      throw Refused(joined("the program ends too early: ", place_, " needs ", count, " ", what, " of ", size,
                           " bytes, and ", remaining(), " bytes are left; it is damaged"));
    }
  }

  uint32_t unsigned_number() {
    need(1, 4, "numbers");
    const uint8_t* byte = bytes_ + at_;
    at_ += 4;
    return uint32_t(byte[0]) | uint32_t(byte[1]) << 8 | uint32_t(byte[2]) << 16 | uint32_t(byte[3]) << 24;
  }

  int32_t number() {
    // Two's complement spelt out: the conversion of a large unsigned number is not the language's own before C++20.
    const uint32_t bits = unsigned_number();
    return bits < 0x80000000u ? int32_t(bits) : -int32_t(~bits) - 1;
  }

  std::vector<int32_t> numbers(uint64_t count) {
    need(count, 4, "numbers");
    std::vector<int32_t> found(static_cast<size_t>(count));
    for (int32_t& value : found) value = number();
    return found;
  }

  Axes axes(int count) {
    Axes found{};
    for (int axis = 0; axis < count; ++axis) found[axis] = number();
    return found;
  }

  std::string text(uint32_t length) {
    need(length, 1, "characters");
    if (!is_plain_utf8(bytes_ + at_, length)) {
      throw Refused(joined(place_, " has a name that is not UTF-8 without control characters; the program is damaged"));
    }
    std::string found(bytes_ + at_, bytes_ + at_ + length);
    at_ += length;
    return found;
  }

 private:
  const uint8_t* bytes_;
  size_t count_, at_ = 0;
  std::string place_ = "its head";
};

}  // namespace mq
