// cold.h: ColdCache for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace firn::python {

void bind_cold(nanobind::module_& m);

}  // namespace firn::python
