/* SPDX-License-Identifier: Apache-2.0 */
/* Log lines. They go to NCCL's logger once a door has handed it over, else to stderr with host, pid
 * and thread. Warnings and errors always show; info shows as NCCL_DEBUG=INFO (or TRACE) asks, debug
 * as NCCL_DEBUG=TRACE. */
#ifndef LAMPREY_PLUGIN_LOG_H
#define LAMPREY_PLUGIN_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_log_level {
    LAMPREY_LOG_ERROR,
    LAMPREY_LOG_WARN,
    LAMPREY_LOG_INFO,
    LAMPREY_LOG_DEBUG,
};

/* NCCL's logger as every plugin ABI declares it (level: 1 version, 2 warn, 3 info, 5 trace). */
typedef void (*lamprey_nccl_logger)(int level, unsigned long subsystems, const char *file, int line,
                                    const char *format, ...);

/* The first non-NULL logger stays; thread-safe. Call it only for stock NCCL (forks have other
 * signatures). */
void lamprey_log_set_nccl_logger(lamprey_nccl_logger logger);

void lamprey_log(enum lamprey_log_level level, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#define lamprey_error(...) lamprey_log(LAMPREY_LOG_ERROR, __FILE__, __LINE__, __VA_ARGS__)
#define lamprey_warn(...) lamprey_log(LAMPREY_LOG_WARN, __FILE__, __LINE__, __VA_ARGS__)
#define lamprey_info(...) lamprey_log(LAMPREY_LOG_INFO, __FILE__, __LINE__, __VA_ARGS__)
#define lamprey_debug(...) lamprey_log(LAMPREY_LOG_DEBUG, __FILE__, __LINE__, __VA_ARGS__)

#ifdef __cplusplus
}
#endif

#endif
