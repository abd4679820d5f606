// Throws bytes at what members of an operation tell each other on the control stream.
//   input: u8 which (0: ready, 1: progress, 2: abort), then the payload
#include <cstdint>
#include <cstdlib>
#include <string>

#include "collective/handshake.h"

using namespace decentral;

namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

// Words of another peer are shown to people: they must not steer a terminal, nor fill it.
void CheckPrintable(const std::string& text) {
  Check(text.size() <= 2000);
  for (const char c : text) Check(static_cast<uint8_t>(c) >= 0x20 && c != 0x7F);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string payload(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 3) {
    case 0: {
      const auto ready = DecodeReady(data + 1, size - 1);
      if (!ready) break;
      Check(EncodeReady(*ready) == payload);
      OpSpec spec;
      spec.count = 1000;
      spec.members.resize(2);
      CheckPrintable(Difference(*ready, Describe(spec), PeerId{}));
      Check(Difference(*ready, *ready, PeerId{}).empty());
      break;
    }
    case 1: {
      const auto progress = DecodeProgress(data + 1, size - 1);
      if (progress) Check(EncodeProgress(*progress) == payload);
      break;
    }
    case 2: {
      const auto error = DecodeAbort(data + 1, size - 1);
      if (!error) break;
      CheckPrintable(error->phase);
      CheckPrintable(error->text);
      const std::string again = EncodeAbort(*error);
      const auto same = DecodeAbort(reinterpret_cast<const uint8_t*>(again.data()), again.size());
      Check(same && same->kind == error->kind && same->peer == error->peer &&
            same->phase == error->phase && same->text == error->text);
      break;
    }
  }
  return 0;
}
