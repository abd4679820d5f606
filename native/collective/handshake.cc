#include "collective/handshake.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <iterator>

#include "core/hash.h"

namespace decentral {
namespace {

constexpr size_t kMaxText = 1000;  // of a sentence from another peer

template <typename T>
void Put(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

template <typename T>
T Get(const uint8_t* in) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(in[i]) << (8 * i);
  return value;
}

// Words from the network end up in terminals: keep them printable (UTF-8 passes) and short.
std::string Printable(const uint8_t* data, size_t size) {
  std::string text(reinterpret_cast<const char*>(data), std::min(size, kMaxText));
  for (char& c : text) {
    if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return text;
}

std::string KindName(uint8_t kind) {
  static constexpr const char* kNames[] = {"an all-reduce", "a reduce-scatter", "an all-gather",
                                           "a broadcast"};
  return kind < std::size(kNames) ? kNames[kind] : "an unknown operation";
}

std::string TypeName(uint8_t dtype) {
  static constexpr const char* kNames[] = {"fp32", "bf16", "fp16", "bytes"};
  return dtype < std::size(kNames) ? kNames[dtype] : "unknown";
}

std::string ScheduleName(const ReadyFrame& f) {
  const auto end = std::find(f.schedule.begin(), f.schedule.end(), '\0');
  const auto size = static_cast<size_t>(end - f.schedule.begin());
  const std::string name = Printable(reinterpret_cast<const uint8_t*>(f.schedule.data()), size);
  return name.empty() ? "(none)" : name;
}

std::string Number(float value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(value));
  return text;
}

}  // namespace

std::string EncodeReady(const ReadyFrame& f) {
  std::string out;
  Put(out, f.ticket);
  Put(out, f.granted);
  Put(out, f.chunk_bytes);
  for (const uint8_t byte : {f.kind, f.dtype, f.codec, f.final_codec}) Put(out, byte);
  Put(out, f.member_count);
  Put(out, std::bit_cast<uint32_t>(f.scale));
  Put(out, f.count);
  out.append(f.schedule.begin(), f.schedule.end());
  out.append(f.members.begin(), f.members.end());
  out.append(f.segments.begin(), f.segments.end());
  return out;
}

std::optional<ReadyFrame> DecodeReady(const uint8_t* payload, size_t size) {
  if (size != ReadyFrame::kSize) return std::nullopt;
  ReadyFrame f;
  f.ticket = Get<uint32_t>(payload);
  f.granted = Get<uint32_t>(payload + 4);
  f.chunk_bytes = Get<uint32_t>(payload + 8);
  f.kind = payload[12];
  f.dtype = payload[13];
  f.codec = payload[14];
  f.final_codec = payload[15];
  f.member_count = Get<uint32_t>(payload + 16);
  f.scale = std::bit_cast<float>(Get<uint32_t>(payload + 20));
  f.count = Get<uint64_t>(payload + 24);
  std::copy_n(payload + 32, f.schedule.size(), f.schedule.begin());
  std::copy_n(payload + 48, 32, f.members.begin());
  std::copy_n(payload + 80, 32, f.segments.begin());
  return f;
}

std::string EncodeProgress(const ProgressFrame& f) {
  std::string out;
  Put(out, f.ticket);
  Put(out, f.granted);
  return out;
}

std::optional<ProgressFrame> DecodeProgress(const uint8_t* payload, size_t size) {
  if (size != ProgressFrame::kSize) return std::nullopt;
  return ProgressFrame{Get<uint32_t>(payload), Get<uint32_t>(payload + 4)};
}

std::string EncodeAbort(const Error& error) {
  std::string out;
  Put(out, static_cast<uint8_t>(error.kind));
  out.append(error.peer.begin(), error.peer.end());
  const std::string phase = error.phase.substr(0, 255);
  Put(out, static_cast<uint8_t>(phase.size()));
  return out + phase + error.text.substr(0, kMaxText);
}

std::optional<Error> DecodeAbort(const uint8_t* payload, size_t size) {
  constexpr size_t kFixed = 1 + 32 + 1;
  if (size < kFixed || payload[0] > static_cast<uint8_t>(ErrorKind::kConfig)) return std::nullopt;
  const size_t phase_size = payload[33];
  if (size < kFixed + phase_size) return std::nullopt;
  Error error(static_cast<ErrorKind>(payload[0]), Printable(payload + kFixed, phase_size),
              Printable(payload + kFixed + phase_size, size - kFixed - phase_size));
  std::copy_n(payload + 1, 32, error.peer.begin());
  return error;
}

ReadyFrame Describe(const OpSpec& spec) {
  ReadyFrame f;
  f.chunk_bytes = spec.chunk_bytes;
  f.kind = static_cast<uint8_t>(spec.kind);
  f.dtype = static_cast<uint8_t>(spec.dtype);
  f.codec = static_cast<uint8_t>(spec.codec);
  f.final_codec = static_cast<uint8_t>(spec.final_codec.value_or(spec.codec));
  f.member_count = static_cast<uint32_t>(spec.members.size());
  f.scale = spec.scale;
  f.count = spec.count;
  std::copy_n(spec.schedule.begin(), std::min(spec.schedule.size(), f.schedule.size()),
              f.schedule.begin());
  std::string members, segments;
  for (const PeerId& id : spec.members) members.append(id.begin(), id.end());
  for (const Segment& s : spec.segments) {
    Put(segments, s.offset);
    Put(segments, s.count);
    Put(segments, s.owner);
  }
  f.members = Sha256(members.data(), members.size());
  f.segments = Sha256(segments.data(), segments.size());
  return f;
}

std::string Difference(const ReadyFrame& theirs, const ReadyFrame& ours, const PeerId& us) {
  const auto says = [&](const std::string& what, const std::string& a, const std::string& b) {
    return what + " " + a + ", " + ShortName(us) + " has " + what + " " + b;
  };
  if (theirs.kind != ours.kind) {
    return "started " + KindName(theirs.kind) + ", " + ShortName(us) + " " + KindName(ours.kind);
  }
  if (theirs.count != ours.count) {
    return says("count", std::to_string(theirs.count), std::to_string(ours.count));
  }
  if (theirs.dtype != ours.dtype) {
    return says("dtype", TypeName(theirs.dtype), TypeName(ours.dtype));
  }
  if (theirs.codec != ours.codec) {
    return says("codec", CodecName(theirs.codec), CodecName(ours.codec));
  }
  if (theirs.final_codec != ours.final_codec) {
    return says("codec of final values", CodecName(theirs.final_codec),
                CodecName(ours.final_codec));
  }
  if (theirs.member_count != ours.member_count) {
    return says("number of members", std::to_string(theirs.member_count),
                std::to_string(ours.member_count));
  }
  if (theirs.members != ours.members) {
    return "other members, or another order of them, than " + ShortName(us);
  }
  if (std::bit_cast<uint32_t>(theirs.scale) != std::bit_cast<uint32_t>(ours.scale)) {
    return says("scale", Number(theirs.scale), Number(ours.scale));
  }
  if (theirs.schedule != ours.schedule) {
    return says("schedule", ScheduleName(theirs), ScheduleName(ours));
  }
  if (theirs.segments != ours.segments) {
    return "another plan (other segments) than " + ShortName(us);
  }
  return "";
}

const char* CodecName(uint32_t codec) {
  const CodecInfo* info = InfoOf(codec);
  return info == nullptr ? "unknown" : info->name;
}

std::string ShortName(const PeerId& id) {
  static constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz234567";
  std::string name = "peer:";
  uint64_t bits = 0;  // 8 characters of 5 bits are the first 5 bytes
  for (int i = 0; i < 5; ++i) bits = bits << 8 | id[i];
  for (int i = 7; i >= 0; --i) name.push_back(kAlphabet[bits >> (5 * i) & 31]);
  return name;
}

}  // namespace decentral
