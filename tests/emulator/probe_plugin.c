/* SPDX-License-Identifier: Apache-2.0 */
/* A plugin of every kind that writes what happens to it into the file $PROBE_LOG, one line each.
 * Compiled with the versions of its tables as macros, so that the fall-back order can be tested. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef void (*logger)(int level, unsigned long subsystems, const char *file, int line,
                       const char *format, ...);

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
    const char *path = getenv("PROBE_LOG");
    FILE *file = path != NULL ? fopen(path, "a") : NULL;
    if (file == NULL) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fclose(file);
}

__attribute__((constructor)) static void opened(void)
{
    note("open " PROBE_NAME);
}

__attribute__((destructor)) static void closed(void)
{
    note("close " PROBE_NAME);
}

#ifdef PROBE_ENV
static int env_init(uint8_t major, uint8_t minor, uint8_t patch, const char *suffix)
{
    note("env init %d.%d.%d%s", major, minor, patch, suffix);
    return 0;
}

static int env_finalize(void)
{
    note("env finalize");
    return 0;
}

static const char *env_get(const char *name)
{
    const char *value = getenv(name);
    return value == NULL && strcmp(name, "NCCL_TUNER_PLUGIN") == 0 ? getenv("PROBE_TUNER") : value;
}

EXPORT const struct {
    const char *name;
    int (*init)(uint8_t major, uint8_t minor, uint8_t patch, const char *suffix);
    int (*finalize)(void);
    const char *(*get)(const char *name);
} ncclEnvPlugin_v1 = {"probe", env_init, env_finalize, env_get};
#endif

#ifdef PROBE_TUNER
static int tuner_choose(void *context, int function, size_t bytes, int pipelined, float **costs,
                        int algorithms, int protocols, int registered, int *channels)
{
    (void)pipelined;
    (void)costs;
    (void)channels;
    note("tuner choose %s function %d bytes %zu table %dx%d registered %d", (char *)context,
         function, bytes, algorithms, protocols, registered);
    return 0;
}

static int tuner_finalize(void *context)
{
    note("tuner finalize %s", (char *)context);
    return 0;
}

static int tuner_init_v5(void **context, uint64_t comm, size_t nranks, size_t nodes, logger log,
                         int *domains, double *constants)
{
    (void)constants;
    *context = (void *)"v5";
    note("tuner init v5 comm %s ranks %zu nodes %zu domains %d", comm != 0 ? "known" : "unknown",
         nranks, nodes, domains[0]);
    log(3, ~0ul, __FILE__, __LINE__, "probe says %s", "hello");
    return 0;
}

static int tuner_init_v4(size_t nranks, size_t nodes, logger log, void **context)
{
    (void)log;
    *context = (void *)"v4";
    note("tuner init v4 ranks %zu nodes %zu", nranks, nodes);
    return 0;
}

EXPORT const struct {
    const char *name;
    int (*init)(size_t nranks, size_t nodes, logger log, void **context);
    int (*choose)(void *context, int function, size_t bytes, int pipelined, float **costs,
                  int algorithms, int protocols, int registered, int *channels);
    int (*destroy)(void *context);
} ncclTunerPlugin_v4 = {"probe", tuner_init_v4, tuner_choose, tuner_finalize};

#if PROBE_TUNER >= 5
EXPORT const struct {
    const char *name;
    int (*init)(void **context, uint64_t comm, size_t nranks, size_t nodes, logger log,
                int *domains, double *constants);
    int (*choose)(void *context, int function, size_t bytes, int pipelined, float **costs,
                  int algorithms, int protocols, int registered, int *channels);
    int (*finalize)(void *context);
} ncclTunerPlugin_v5 = {"probe", tuner_init_v5, tuner_choose, tuner_finalize};
#else
void *const probe_unused = (void *)(uintptr_t)tuner_init_v5;
#endif
#endif

#ifdef PROBE_PROFILER
static int profiler_init(void **context, uint64_t comm, int *mask, const char *name, int nodes,
                         int nranks, int rank, logger log)
{
    (void)comm;
    (void)log;
    *mask = 0;
    *context = (void *)"context";
    note("profiler init name %s nodes %d rank %d/%d", name != NULL ? name : "-", nodes, rank,
         nranks);
    return 0;
}

static int profiler_finalize(void *context)
{
    note("profiler finalize %s", (char *)context);
    return 0;
}

EXPORT const struct {
    const char *name;
    int (*init)(void **context, uint64_t comm, int *mask, const char *name, int nodes, int nranks,
                int rank, logger log);
    void *unused[3];
    int (*finalize)(void *context);
} ncclProfiler_v5 = {"probe", profiler_init, {NULL}, profiler_finalize};
#endif

#ifdef PROBE_NET
static int net_init(void **context, uint64_t comm, int *config, logger log, void *profiler)
{
    (void)context;
    (void)comm;
    note("net init traffic class %d logger %d profiler %d", *config, log != NULL, profiler != NULL);
    return 0;
}

static int net_devices(int *count)
{
    *count = 0;
    return 0;
}

EXPORT const struct {
    const char *name;
    int (*init)(void **context, uint64_t comm, int *config, logger log, void *profiler);
    int (*devices)(int *count);
    void *unused[19];
} ncclNetPlugin_v11 = {"probe", net_init, net_devices, {NULL}};
#endif
