// All-reduce over real endpoints in one process: plain and TLS, every codec, and a death.
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "collective/engine.h"
#include "endpoint_helper.h"
#include "plans.h"

namespace decentral::test {
namespace {

constexpr uint64_t kCount = 2 << 20;  // 8 MiB

// Endpoints with all links up and admitted, an engine on each.
struct Mesh {
  Mesh(int n, bool encrypt) {
    for (int i = 0; i < n; ++i) {
      EndpointOptions options = Options(static_cast<uint8_t>(i + 1));
      options.encrypt_bulk = encrypt;
      nodes.push_back(std::make_unique<Node>(options));
      Endpoint& endpoint = nodes.back()->endpoint;
      ids.push_back(endpoint.id());
      engines.push_back(Engine::Create(endpoint.bulk(), endpoint.id()));
      endpoint.SetBulkHandler(engines.back().get());
      const uint16_t port = endpoint.Listen("127.0.0.1", 0);
      for (int k = 0; k < i; ++k) Connect(*nodes[k], *nodes[i], port);
      src.emplace_back(kCount);
      std::mt19937 random(i);
      for (float& x : src.back()) x = static_cast<float>(random()) / 4e9f - 0.5f;
      dst.emplace_back(kCount);
    }
  }
  ~Mesh() {
    for (size_t i = 0; i < nodes.size(); ++i) Leave(i);
  }
  void Leave(size_t i) {
    if (!engines[i]) return;
    engines[i]->Close();
    nodes[i]->endpoint.SetBulkHandler(nullptr);
    engines[i].reset();
    nodes[i].reset();
  }
  std::vector<std::shared_ptr<Op>> Start(Codec codec, uint64_t round) {
    const auto n = static_cast<uint32_t>(ids.size());
    std::vector<std::shared_ptr<Op>> ops;
    for (uint32_t i = 0; i < n; ++i) {
      Plan plan = Ring(n, i, kCount);
      OpSpec spec;
      spec.members = ids;
      spec.rank = i;
      spec.count = kCount;
      spec.codec = codec;
      spec.segments = plan.segments;
      spec.steps = plan.steps;
      spec.scale = 1.0f / static_cast<float>(n);
      spec.round = round;
      ops.push_back(engines[i]->Start(spec, src[i].data(), dst[i].data()));
    }
    return ops;
  }

  std::vector<PeerId> ids;
  std::vector<std::vector<float>> src, dst;
  std::vector<std::unique_ptr<Node>> nodes;
  std::vector<std::unique_ptr<Engine>> engines;
};

TEST(every_codec_plain_and_encrypted) {
  for (const bool encrypt : {false, true}) {
    for (const int n : {2, 4}) {
      Mesh mesh(n, encrypt);
      uint64_t round = 0;
      for (const Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8}) {
        const auto before = mesh.src;
        for (auto& op : mesh.Start(codec, ++round)) {
          CHECK(op->Wait(60));
          CHECK(!op->error());
          CHECK(op->stats().bytes_sent >= EncodedSize(codec, kCount) * 2 * (n - 1) / n);
        }
        CHECK(mesh.src == before);
        const double tolerance = codec == Codec::kFp32 ? 1e-6 : 0.02;
        for (uint64_t k = 0; k < kCount; k += 997) {
          double exact = 0;
          for (const auto& src : mesh.src) exact += src[k] / static_cast<double>(n);
          CHECK(std::abs(exact - mesh.dst[0][k]) < tolerance);
        }
        for (const auto& dst : mesh.dst) {
          CHECK(std::memcmp(dst.data(), mesh.dst[0].data(), kCount * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST(a_member_that_leaves_in_the_middle_is_named_and_the_rest_can_go_on) {
  for (const bool encrypt : {false, true}) {
    for (int delay_ms : {0, 1, 3, 8}) {
      Mesh mesh(3, encrypt);
      const auto before = mesh.src;
      auto ops = mesh.Start(Codec::kFp32, 1);
      ops[0]->Wait(delay_ms * 1e-3);
      mesh.Leave(2);
      for (int i = 0; i < 2; ++i) {
        CHECK(ops[i]->Wait(20));
        const Error error = ops[i]->error();
        if (!error) continue;
        CHECK(error.kind == ErrorKind::kClosed || error.kind == ErrorKind::kAborted);
        CHECK(error.peer == mesh.ids[2]);
      }
      CHECK(mesh.src == before);
    }
  }
}

TEST(abort_in_the_middle_and_a_retry) {
  for (const bool encrypt : {false, true}) {
    Mesh mesh(3, encrypt);
    for (uint64_t round = 1; round <= 6; ++round) {
      auto ops = mesh.Start(Codec::kFp32, round);
      ops[0]->Wait(static_cast<double>(round) * 1e-3);
      ops[round % 3]->Abort("enough");
      for (auto& op : ops) {
        CHECK(op->Wait(20));
        const Error error = op->error();
        if (error) CHECK(error.kind == ErrorKind::kAborted);
      }
      for (auto& op : mesh.Start(Codec::kInt8, 100 + round)) {
        CHECK(op->Wait(20));
        CHECK(!op->error());
      }
    }
  }
}

}  // namespace
}  // namespace decentral::test

TEST_MAIN()
