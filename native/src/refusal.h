// How a program is refused: a message that names the node, what was found and what was expected.
#pragma once

#include <locale>
#include <sstream>
#include <string>

#include "program.h"

namespace mq {

constexpr size_t kShownNameBytes = 60;

// A node's name as messages show it; a long one is cut between two characters.
inline std::string shown(const std::string& name) {
  if (name.size() <= kShownNameBytes) return name;
  size_t kept = kShownNameBytes - 3;
  while (kept > 0 && (static_cast<unsigned char>(name[kept]) & 0xC0) == 0x80) --kept;
  return name.substr(0, kept) + "...";
}

template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  // A process may have set a locale that groups digits.
  text.imbue(std::locale::classic());
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
[[noreturn]] void refuse(const Node& node, const Parts&... parts) {
  throw Refused(joined(shown(node.name), ": ", parts...));
}

}  // namespace mq
