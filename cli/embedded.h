// embedded.h: files of this repository that the program carries with it.
#pragma once

namespace firn::cli {
extern const char* const kPersuasion;  // examples/texts/
extern const char* const kMoby;
extern const char* const kOpticks;
extern const char* const kLicence;   // LICENSE
extern const char* const kKeysPage;  // docs/
extern const char* const kDesignPage;
extern const char* const kSource;        // a file of C++
extern const char* const kDemoConfig;    // configs/demo.yaml
extern const char* const kCodecFigures;  // configs/codecs/smollm2-135m.yaml
}  // namespace firn::cli
