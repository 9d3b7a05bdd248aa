// A program and its weights in one file, for tests: u32 number of weight arrays; u32 size and weights of each; block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "../src/program.h"

struct CaseFile {
  std::vector<std::vector<int8_t>> weights;
  std::vector<uint8_t> block;

  mq::Program load() const {
    std::vector<const int8_t*> arrays;
    std::vector<size_t> sizes;
    for (const auto& each : weights) arrays.push_back(each.data()), sizes.push_back(each.size());
    return mq::read_program(block.data(), block.size(), arrays.data(), sizes.data(), arrays.size());
  }
};

// Nothing where the file is not of this form. Arrays are copied into memory of their own: a sanitizer sees what is read
// beyond one.
inline std::optional<CaseFile> read_case_file(const uint8_t* bytes, size_t count) {
  size_t at = 0;
  const auto number = [&](uint32_t& found) {
    if (count - at < 4) return false;
    found = 0;
    for (size_t byte = 0; byte < 4; ++byte) found |= uint32_t(bytes[at + byte]) << 8 * byte;
    at += 4;
    return true;
  };
  CaseFile file;
  uint32_t arrays = 0, size = 0;
  if (!number(arrays)) return std::nullopt;
  for (; arrays > 0; --arrays) {
    if (!number(size) || count - at < size) return std::nullopt;
    file.weights.emplace_back(bytes + at, bytes + at + size);
    at += size;
  }
  file.block.assign(bytes + at, bytes + count);
  return file;
}
