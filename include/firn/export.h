// export.h: marks what leaves the library when it is built shared; everything else is hidden.
#pragma once
#if defined(__GNUC__)
#define FIRN_API __attribute__((visibility("default")))
#else
#define FIRN_API
#endif
