// A test framework in thirty lines: CHECK aborts with the place, TEST registers, main runs all.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace decentral::test {

struct Case {
  const char* name;
  std::function<void()> body;
};
inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}
struct Register {
  Register(const char* name, std::function<void()> body) { Cases().push_back({name, body}); }
};
inline int RunAll() {
  for (auto& c : Cases()) {
    std::printf("%s ... ", c.name);
    std::fflush(stdout);
    c.body();
    std::puts("ok");
  }
  return 0;
}

}  // namespace decentral::test

#define TEST(name)                                                  \
  static void name();                                               \
  static ::decentral::test::Register register_##name(#name, &name); \
  static void name()

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (0)

#define TEST_MAIN() \
  int main() { return ::decentral::test::RunAll(); }
