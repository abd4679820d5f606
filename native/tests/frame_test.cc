// Frames: what is written comes back, and nothing hostile gets past the reader.
#include "wire/frame.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "link/control_queue.h"
#include "link/control_reader.h"
#include "tests/check.h"

using namespace decentral;

namespace {

FrameHeader Full() {
  FrameHeader h{.type = FrameType::kChunk, .flags = 0xa5, .length = 0x01020304};
  h.run = 0x1112131415161718;
  h.lineage = 0x2122232425262728;
  h.epoch = 0x3132333435363738;
  h.round = 0x4142434445464748;
  h.attempt = 0x51525354;
  h.tag = 0x61626364;
  h.sequence = 0x7172737475767778;
  return h;
}

std::string Frame(FrameHeader header, const std::string& payload) {
  header.length = static_cast<uint32_t>(payload.size());
  uint8_t bytes[FrameHeader::kSize];
  EncodeHeader(header, bytes);
  return std::string(reinterpret_cast<char*>(bytes), sizeof bytes) + payload;
}

struct Got {
  FrameHeader header;
  std::string payload;
};

// Feeds in pieces of `step` bytes; returns what broke.
std::string Read(const std::string& bytes, size_t step, std::vector<Got>* got,
                 uint32_t max_message = 1 << 20) {
  ControlReader reader(max_message);
  for (size_t at = 0; at < bytes.size(); at += step) {
    const std::string wrong =
        reader.Feed(reinterpret_cast<const uint8_t*>(bytes.data()) + at,
                    std::min(step, bytes.size() - at), [&](const FrameHeader& h, std::string p) {
                      if (got != nullptr) got->push_back({h, std::move(p)});
                      return true;
                    });
    if (!wrong.empty()) return wrong;
  }
  return {};
}

}  // namespace

TEST(the_layout_is_the_one_of_format_md) {
  uint8_t bytes[FrameHeader::kSize];
  EncodeHeader(Full(), bytes);
  const uint8_t expected[] = {
      0x01, 0xdc, 17,   0xa5, 0x04, 0x03, 0x02, 0x01,  // magic, type, flags, length
      0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // run
      0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // lineage
      0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,  // epoch
      0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41,  // round
      0x54, 0x53, 0x52, 0x51, 0x64, 0x63, 0x62, 0x61,  // attempt, tag
      0x78, 0x77, 0x76, 0x75, 0x74, 0x73, 0x72, 0x71,  // sequence
  };
  static_assert(sizeof expected == 56);
  CHECK(std::memcmp(bytes, expected, sizeof expected) == 0);
}

TEST(a_header_comes_back) {
  uint8_t bytes[FrameHeader::kSize];
  EncodeHeader(Full(), bytes);
  const auto back = DecodeHeader(bytes, UINT32_MAX);
  CHECK(back && back->type == FrameType::kChunk && back->flags == 0xa5);
  uint8_t again[FrameHeader::kSize];
  EncodeHeader(*back, again);
  CHECK(std::memcmp(bytes, again, sizeof bytes) == 0);
}

TEST(hostile_headers_are_refused) {
  uint8_t bytes[FrameHeader::kSize];
  EncodeHeader(Full(), bytes);
  CHECK(DecodeHeader(bytes, 0x01020304));
  CHECK(!DecodeHeader(bytes, 0x01020303));  // one byte over the limit
  for (const size_t at : {0, 1}) {
    uint8_t broken[FrameHeader::kSize];
    std::memcpy(broken, bytes, sizeof bytes);
    broken[at] ^= 1;
    CHECK(!DecodeHeader(broken, UINT32_MAX));
  }
  for (int type = 0; type < 256; ++type) {
    bytes[2] = static_cast<uint8_t>(type);
    const bool known = (type >= 1 && type <= 7) || (type >= 16 && type <= 18);
    CHECK(DecodeHeader(bytes, UINT32_MAX).has_value() == known);
  }
}

TEST(messages_survive_any_cut) {
  ControlQueue queue;
  const std::string large(100'000, 'l');
  queue.Push({.type = FrameType::kMessage}, large, 2);
  std::string wire;
  CHECK(queue.Next(&wire));  // one slice of the large one is out already
  queue.Push({.type = FrameType::kMessage}, "middle", 1);
  queue.Push({.type = FrameType::kProbe}, "12345678", 0);
  queue.Push({.type = FrameType::kMessage}, "", 0);
  while (queue.Next(&wire)) {
  }
  CHECK(queue.empty() && queue.bytes() == 0);
  for (const size_t step : {1, 7, 56, 57, 4096, 1 << 20}) {
    std::vector<Got> got;
    CHECK(Read(wire, step, &got).empty());
    CHECK(got.size() == 4);
    CHECK(got[0].header.type == FrameType::kProbe && got[0].payload == "12345678");
    CHECK(got[1].payload.empty() && got[2].payload == "middle" && got[3].payload == large);
  }
}

TEST(a_frame_that_announces_a_gigabyte_is_refused_by_its_header) {
  for (const auto type : {FrameType::kMessage, FrameType::kProbe, FrameType::kRefuse,
                          FrameType::kBulkWanted, FrameType::kOpReady}) {
    FrameHeader header{.type = type, .length = 1u << 30};
    uint8_t bytes[FrameHeader::kSize];
    EncodeHeader(header, bytes);
    CHECK(!Read(std::string(reinterpret_cast<char*>(bytes), sizeof bytes), 56, nullptr).empty());
  }
}

TEST(bulk_frames_do_not_belong_on_a_control_stream) {
  CHECK(!Read(Frame({.type = FrameType::kChunk}, ""), 56, nullptr).empty());
  CHECK(!Read(Frame({.type = FrameType::kBulkHello}, ""), 56, nullptr).empty());
}

TEST(slices_do_not_add_up_beyond_the_limit) {
  std::string wire;
  for (int i = 0; i < 10; ++i) {
    wire += Frame({.type = FrameType::kMessage, .flags = kFlagMore}, std::string(1000, 'x'));
  }
  CHECK(Read(wire, 100, nullptr, 10'000).empty());
  CHECK(!Read(wire, 100, nullptr, 9'999).empty());
  CHECK(!Read(Frame({.type = FrameType::kMessage, .flags = kFlagMore}, ""), 56, nullptr).empty());
  FrameHeader fourth{.type = FrameType::kMessage};
  fourth.tag = kPriorities;
  CHECK(!Read(Frame(fourth, "x"), 56, nullptr).empty());
}

TEST(random_bytes_never_get_far) {
  std::mt19937 random(20'25);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (int i = 0; i < 4; ++i) {
      FrameHeader header{.type = static_cast<FrameType>(1 + random() % 7)};
      header.tag = random() % 3;
      bytes += Frame(header, std::string(random() % 12, 'p'));
    }
    for (int flips = random() % 4; flips > 0; --flips) {
      bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    }
    std::vector<Got> got;
    Read(bytes, 1 + random() % 80, &got);
    CHECK(got.size() <= 4 + bytes.size() / FrameHeader::kSize);
  }
}

TEST(text_from_the_network_is_fit_for_a_terminal) {
  CHECK(Printable("a\x1b[31mb\nc") == "a [31mb c");
  CHECK(Printable(std::string(5000, 'x')).size() == 512);
}

TEST_MAIN()
