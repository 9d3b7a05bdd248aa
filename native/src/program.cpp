// Reads the block of bytes that medquant/deploy/native/program.py writes.
#include "program.h"

#include <cstring>

#include "byte_reader.h"
#include "program_check.h"

namespace mq {
namespace {

constexpr char kMagic[] = "MQNP";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kLongestName = 1024;
constexpr size_t kSmallestNode = 28;  // kind, lengths of name and inputs, accumulates, format

struct Weights {
  const int8_t* const* arrays;
  const size_t* sizes;
  size_t count;
  size_t used = 0;
};

uint32_t read_head(ByteReader& reader, const uint8_t* bytes, Program& program) {
  reader.need(4, 4, "numbers");
  if (std::memcmp(bytes, kMagic, 4) != 0) {
    throw Refused("this is no program of the native engine: it does not begin with MQNP");
  }
  reader.unsigned_number();
  const uint32_t version = reader.unsigned_number();
  if (version != kVersion) {
    throw Refused(joined("the program has version ", version, ", and this library reads version ", kVersion,
                         "; install medquant and its library from one release"));
  }
  const uint32_t axes = reader.unsigned_number();
  if (axes != 2 && axes != 3) throw Refused(joined("the program has ", axes, " spatial axes, expected 2 or 3"));
  program.axes = int(axes);
  const uint32_t nodes = reader.unsigned_number();
  if (nodes == 0) throw Refused("the program has no nodes, expected its image at least");
  reader.need(nodes, kSmallestNode, "nodes");
  return nodes;
}

bool read_flag(ByteReader& reader, const Node& node, const char* what) {
  const int32_t value = reader.number();
  if (value != 0 && value != 1) refuse(node, what, " is ", value, ", expected 0 or 1");
  return value == 1;
}

Node read_node_head(ByteReader& reader) {
  Node node;
  const uint32_t kind = reader.unsigned_number(), length = reader.unsigned_number();
  if (length == 0 || length > kLongestName) {
    throw Refused(joined(reader.place(), " has a name of ", length, " bytes, expected 1 to ", kLongestName));
  }
  node.name = reader.text(length);
  reader.enter(shown(node.name));
  if (kind > uint32_t(Kind::add)) refuse(node, "a node of kind ", kind, ", expected 0 to ", uint32_t(Kind::add));
  node.kind = Kind(kind);
  const uint32_t inputs = reader.unsigned_number();
  reader.need(inputs, 4, "inputs");
  node.inputs.reserve(inputs);
  for (uint32_t input = 0; input < inputs; ++input) node.inputs.push_back(reader.unsigned_number());
  node.accumulates = read_flag(reader, node, "accumulates");
  node.format = {reader.number(), reader.number(), reader.number()};
  return node;
}

void read_convolution(ByteReader& reader, const Program& earlier, Weights& weights, Node& node) {
  node.weight_bits = reader.number();
  node.relu = read_flag(reader, node, "relu");
  node.transposed = read_flag(reader, node, "transposed");
  node.groups = reader.number();
  for (Axes* each : {&node.kernel, &node.stride, &node.padding, &node.dilation, &node.output_padding}) {
    *each = reader.axes(earlier.axes);
  }
  node.channels = reader.number();
  node.in_channels = reader.number();
  check_geometry(earlier, node);
  const uint32_t index = reader.unsigned_number();
  if (index != weights.used) refuse(node, "weight array ", index, ", expected ", weights.used, ", the next in order");
  if (index >= weights.count) refuse(node, "weight array ", index, ", and there are only ", weights.count);
  const uint64_t expected = weight_values(node, earlier.axes);
  const int8_t* found = weights.arrays[index];
  if (found == nullptr || weights.sizes[index] != expected) {
    refuse(node, found == nullptr ? 0 : weights.sizes[index], " weights, expected ", expected);
  }
  node.bias = reader.numbers(uint64_t(node.channels));
  node.weight_exponents = reader.numbers(uint64_t(node.channels));
  node.weight.assign(found, found + expected);
  ++weights.used;
}

void read_fields(ByteReader& reader, const Program& earlier, Weights& weights, Node& node) {
  switch (node.kind) {
    case Kind::convolution:
      return read_convolution(reader, earlier, weights, node);
    case Kind::image:
      node.channels = reader.number();
      break;
    case Kind::max_pool:
    case Kind::avg_pool:
      node.kernel = reader.axes(earlier.axes);
      node.stride = reader.axes(earlier.axes);
      if (node.kind == Kind::max_pool) node.padding = reader.axes(earlier.axes);
      break;
    case Kind::upsample: {
      node.factor = reader.number();
      const int32_t mode = reader.number();
      if (mode != 0 && mode != 1) refuse(node, "mode ", mode, ", expected 0 (nearest) or 1 (linear)");
      node.mode = Upsampling(mode);
      break;
    }
    case Kind::add:
      node.relu = read_flag(reader, node, "relu");
      break;
    case Kind::relu:
    case Kind::concat:
      break;
  }
  check_geometry(earlier, node);
}

// Channels of what a node writes that has no number of its own.
int32_t channels_of(const Program& earlier, const Node& node) {
  int64_t channels = 0;
  for (const uint32_t input : node.inputs) {
    channels += earlier.nodes[input].channels;
    if (node.kind != Kind::concat) break;
    if (channels > kMostChannels) refuse(node, "more than ", kMostChannels, " channels joined");
  }
  return int32_t(channels);
}

}  // namespace

Program read_program(const uint8_t* bytes, size_t count, const int8_t* const* weights, const size_t* weight_sizes,
                     size_t weight_count) {
  ByteReader reader(bytes, count);
  Program program;
  Weights arrays{weights, weight_sizes, weight_count};
  const uint32_t nodes = read_head(reader, bytes, program);
  for (uint32_t index = 0; index < nodes; ++index) {
    reader.enter(joined("node ", index));
    Node node = read_node_head(reader);
    check_head(program, node, index + 1 == nodes);
    read_fields(reader, program, arrays, node);
    if (node.kind != Kind::image && node.kind != Kind::convolution) node.channels = channels_of(program, node);
    check_arithmetic(program, node);
    program.nodes.push_back(std::move(node));
  }
  if (reader.remaining() > 0) {
    throw Refused(joined(reader.remaining(), " bytes follow the last node; the program is damaged"));
  }
  if (arrays.used != weight_count) {
    throw Refused(joined(weight_count, " weight arrays for ", arrays.used, " convolutions; expected as many"));
  }
  return program;
}

}  // namespace mq
