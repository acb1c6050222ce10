// check.h: a broken invariant of the example engine stops the program, in every build. Input never reaches one.
#pragma once

#include <cstdio>
#include <cstdlib>

#define LLAMA_CHECK(...)      \
  ((__VA_ARGS__)              \
       ? static_cast<void>(0) \
       : (std::fprintf(stderr, "broken invariant at %s:%d: %s\n", __FILE__, __LINE__, #__VA_ARGS__), std::abort()))
