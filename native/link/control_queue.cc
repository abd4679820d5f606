#include "link/control_queue.h"

#include <algorithm>

namespace decentral {

void ControlQueue::Push(const FrameHeader& header, std::string payload, int priority) {
  bytes_ += FrameHeader::kSize + payload.size();
  const int lane = std::clamp(priority, 0, kPriorities - 1);
  queues_[lane].push_back({header, std::move(payload), 0});
  if (header.type == FrameType::kMessage) queues_[lane].back().header.tag = lane;
}

bool ControlQueue::empty() const {
  return std::all_of(std::begin(queues_), std::end(queues_),
                     [](const auto& queue) { return queue.empty(); });
}

bool ControlQueue::Next(std::string* out) {
  for (auto& queue : queues_) {
    if (queue.empty()) continue;
    Item& item = queue.front();
    size_t take = item.payload.size() - item.sent;
    if (item.header.type == FrameType::kMessage) {
      take = std::min<size_t>(take, kMessageSlice);
      const bool more = item.sent + take < item.payload.size();
      item.header.flags = more ? kFlagMore : 0;
    }
    item.header.length = static_cast<uint32_t>(take);
    uint8_t header[FrameHeader::kSize];
    EncodeHeader(item.header, header);
    out->append(reinterpret_cast<const char*>(header), sizeof header);
    out->append(item.payload, item.sent, take);
    item.sent += take;
    bytes_ -= take;
    if (item.sent == item.payload.size()) {
      bytes_ -= FrameHeader::kSize;
      queue.pop_front();
    }
    return true;
  }
  return false;
}

}  // namespace decentral
