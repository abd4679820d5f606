// Buffers that outlive one operation: fresh pages cost more than the memory traffic they carry.
// Data thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace decentral {

class ScratchPool {
 public:
  struct Free {
    void operator()(uint8_t* p) const { ::operator delete[](p, kAlignment); }
  };
  // Empty, or `capacity` bytes aligned for any vector unit. Give it back when it is hot.
  struct Buffer {
    std::unique_ptr<uint8_t[], Free> bytes;
    size_t capacity = 0;
    uint8_t* data() const { return bytes.get(); }
    explicit operator bool() const { return bytes != nullptr; }
  };

  // Last in, first out: the most recently used buffer is the one still in cache.
  Buffer Take(size_t size) {
    const size_t capacity = (size + kGrain - 1) / kGrain * kGrain;
    for (auto it = free_.rbegin(); it != free_.rend(); ++it) {
      if (it->capacity != capacity) continue;
      Buffer found = std::move(*it);
      free_.erase(std::next(it).base());
      kept_ -= capacity;
      return found;
    }
    Buffer fresh;
    fresh.bytes.reset(static_cast<uint8_t*>(::operator new[](capacity, kAlignment)));
    fresh.capacity = capacity;
    return fresh;
  }

  void Give(Buffer buffer) {
    if (!buffer) return;
    kept_ += buffer.capacity;
    free_.push_back(std::move(buffer));
    while (kept_ > kKeep) {  // the oldest go first
      kept_ -= free_.front().capacity;
      free_.erase(free_.begin());
    }
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kGrain = 64 << 10;
  static constexpr size_t kKeep = 64 << 20;
  std::vector<Buffer> free_;
  size_t kept_ = 0;
};

}  // namespace decentral
