// Hints for the compiler's vectorizer, so that kernels stay plain loops.
#pragma once

#include <cstddef>  // with libstdc++ on glibc, defines __GLIBC__

// "No iteration depends on another": true for elementwise loops even when out is one of the
// inputs. Without it, gcc's run-time overlap check sends in-place calls to the scalar loop.
#if defined(__clang__)
#define DECENTRAL_ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define DECENTRAL_ELEMENTWISE _Pragma("GCC ivdep")
#else
#define DECENTRAL_ELEMENTWISE
#endif

// Also compile the function for wider registers and pick one at load time. Elementwise IEEE
// arithmetic without contraction gives the same bits at every width. Not under sanitizers: their
// instrumentation would run inside the resolver, before they are set up.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && defined(__GNUC__) && \
    !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define DECENTRAL_PER_ISA __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define DECENTRAL_PER_ISA
#endif
