// SPDX-License-Identifier: Apache-2.0
#include "tests/header_standard.c"
