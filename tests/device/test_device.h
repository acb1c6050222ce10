// test_device.h: the device that a test program was asked to run on: `budgets_test --device lavapipe`, or
// FIRN_TEST_DEVICE. Vulkan devices run under Khronos core and synchronisation validation, with our own hazard checks
// and a pool that the host does not reach; a single message, also one about leaks at the end, fails the program.
#pragma once

#include "firn/device.h"

namespace firn::test {

// Null: none was asked for, the configuration decides. One device for the whole program.
Device* test_device();

}  // namespace firn::test
