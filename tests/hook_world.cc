// SPDX-License-Identifier: Apache-2.0
#include "tests/hook_world.h"

namespace hook_test {

std::atomic<int> warnings{0};
std::string last_warning;

} // namespace hook_test

// NCCL's own: it forgets a job when a communicator is NULL.
extern "C" const char *__lsan_default_suppressions()
{
    return "leak:libnccl\nleak:ncclCallocDebug\n";
}

// Stands in for plugin/log.c.
extern "C" void lamprey_log(enum lamprey_log_level level, const char *, int, const char *format,
                            ...)
{
    if (level <= LAMPREY_LOG_WARN) {
        char text[512];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        hook_test::last_warning = text;
        ++hook_test::warnings;
    }
}
