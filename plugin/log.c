/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NCCL_LOG_WARN 2
#define NCCL_LOG_INFO 3
#define NCCL_LOG_TRACE 5
#define NCCL_SUBSYSTEM_INIT 1 /* shown by default with NCCL_DEBUG=INFO */

static _Atomic(lamprey_nccl_logger) nccl_logger;
static enum lamprey_log_level stderr_level = LAMPREY_LOG_WARN;

static void read_level(void)
{
    const char *debug = getenv("NCCL_DEBUG");
    if (!debug) {
        return;
    }
    if (strcasecmp(debug, "INFO") == 0) {
        stderr_level = LAMPREY_LOG_INFO;
    } else if (strcasecmp(debug, "TRACE") == 0) {
        stderr_level = LAMPREY_LOG_DEBUG;
    }
}

void lamprey_log_set_nccl_logger(lamprey_nccl_logger logger)
{
    lamprey_nccl_logger none = NULL;
    if (logger) {
        atomic_compare_exchange_strong(&nccl_logger, &none, logger);
    }
}

static void log_to_stderr(enum lamprey_log_level level, const char *text)
{
    static const char *const names[] = {"ERROR", "WARN", "INFO", "DEBUG"};
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    fprintf(stderr, "%s:%d:%ld Lamprey %s %s\n", host, (int)getpid(), (long)syscall(SYS_gettid),
            names[level], text);
}

void lamprey_log(enum lamprey_log_level level, const char *file, int line, const char *format, ...)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_level);

    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);

    lamprey_nccl_logger logger = atomic_load(&nccl_logger);
    /* NCCL shows nothing unless NCCL_DEBUG is set; a warning of ours shows all the same. */
    if (!logger || (level <= LAMPREY_LOG_WARN && !getenv("NCCL_DEBUG"))) {
        if (level <= stderr_level) {
            log_to_stderr(level, text);
        }
        return;
    }
    int nccl_level = level <= LAMPREY_LOG_WARN   ? NCCL_LOG_WARN
                     : level == LAMPREY_LOG_INFO ? NCCL_LOG_INFO
                                                 : NCCL_LOG_TRACE;
    logger(nccl_level, NCCL_SUBSYSTEM_INIT, file, line, "Lamprey: %s", text);
}
