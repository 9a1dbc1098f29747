/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tests/emulator/nccl/internal.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <sys/syscall.h>
#include <unistd.h>

#define MAX_FAULTS 16

struct fault {
    char name[64];
    unsigned long nth;
    ncclResult_t result;
    atomic_ulong calls;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int threshold = LOG_NONE;
static FILE *output;
static char host[64];
static char last_error[1024];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct fault faults[MAX_FAULTS];
static size_t fault_count;
static pthread_once_t fault_once = PTHREAD_ONCE_INIT;

/* NCCL_DEBUG_FILE: %h is the host, %p the process. */
static void open_file(const char *pattern)
{
    char path[1024] = {0};
    size_t length = 0;
    for (; *pattern != '\0' && length + 80 < sizeof(path); pattern++) {
        if (pattern[0] == '%' && (pattern[1] == 'h' || pattern[1] == 'p')) {
            pattern++;
            length +=
                (size_t)(*pattern == 'h'
                             ? snprintf(path + length, sizeof(path) - length, "%s", host)
                             : snprintf(path + length, sizeof(path) - length, "%d", getpid()));
        } else {
            path[length++] = *pattern;
        }
    }
    FILE *file = path[0] != '\0' ? fopen(path, "w") : NULL;
    if (file != NULL) {
        setlinebuf(file);
        output = file;
    }
}

static void start(void)
{
    static const char *const names[] = {"NONE", "VERSION", "WARN", "INFO", "ABORT", "TRACE"};
    output = stdout;
    gethostname(host, sizeof(host) - 1);
    host[strcspn(host, ".")] = '\0';
    const char *level = emulated_getenv("NCCL_DEBUG");
    for (int i = 0; level != NULL && i < 6; i++) {
        if (strcasecmp(level, names[i]) == 0) {
            threshold = i;
        }
    }
    const char *file = emulated_getenv("NCCL_DEBUG_FILE");
    if (file != NULL && threshold > LOG_VERSION) {
        open_file(file);
    }
}

void emulated_log(int level, unsigned long subsystems, const char *file, int line,
                  const char *format, ...)
{
    (void)subsystems;
    pthread_once(&once, start);
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&mutex);
    if (level == LOG_WARN) {
        memcpy(last_error, text, sizeof(last_error));
    }
    pthread_mutex_unlock(&mutex);
    if (level > threshold) {
        return;
    }
    long thread = syscall(SYS_gettid);
    if (level == LOG_VERSION) {
        fprintf(output, "%s\n", text);
    } else if (level == LOG_WARN) {
        fprintf(output, "\n%s:%d:%ld %s:%d NCCL WARN %s\n", host, getpid(), thread, file, line,
                text);
    } else {
        fprintf(output, "%s:%d:%ld NCCL INFO %s\n", host, getpid(), thread, text);
    }
    fflush(output);
}

const char *emulated_last_error(void)
{
    static _Thread_local char copy[sizeof(last_error)];
    pthread_mutex_lock(&mutex);
    memcpy(copy, last_error, sizeof(copy));
    pthread_mutex_unlock(&mutex);
    return copy;
}

static void parse_faults(void)
{
    const char *text = getenv("LAMPREY_EMULATOR_NCCL_FAIL");
    while (text != NULL && *text != '\0') {
        size_t length = strcspn(text, ",");
        char item[128] = {0};
        snprintf(item, sizeof(item), "%.*s", (int)length, text);
        int result = ncclInternalError;
        if (fault_count + 1 == MAX_FAULTS ||
            sscanf(item, "%63[^:]:%lu:%d", faults[fault_count].name, &faults[fault_count].nth,
                   &result) < 2) {
            fprintf(stderr,
                    "emulator: LAMPREY_EMULATOR_NCCL_FAIL: \"%s\" is not function:n[:result]\n",
                    item);
        } else {
            faults[fault_count++].result = (ncclResult_t)result;
        }
        text += length + (text[length] == ',');
    }
}

ncclResult_t emulated_fault(const char *function)
{
    pthread_once(&fault_once, parse_faults);
    for (size_t i = 0; i < fault_count; i++) {
        if (strcmp(faults[i].name, function) == 0) {
            unsigned long call = atomic_fetch_add(&faults[i].calls, 1) + 1;
            if (faults[i].nth == 0 || faults[i].nth == call) {
                WARN("%s fails because LAMPREY_EMULATOR_NCCL_FAIL says so", function);
                return faults[i].result;
            }
        }
    }
    return ncclSuccess;
}

ncclResult_t emulated_cuda(CUresult result, const char *call)
{
    if (result == CUDA_SUCCESS) {
        return ncclSuccess;
    }
    const char *name = NULL;
    cuGetErrorName(result, &name);
    WARN("Cuda failure %d '%s' in %s", result, name != NULL ? name : "?", call);
    return ncclUnhandledCudaError;
}
