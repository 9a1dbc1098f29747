/* SPDX-License-Identifier: Apache-2.0 */
/* What can be checked of one NCCL release without a GPU: that each function can be redirected,
 * called through and restored, and that every plugin table which the release looks up opens its
 * door.
 *
 *   check_release functions LIBNCCL
 *   check_release doors LIBNCCL LIBLAMPREY
 *
 * Prints name=value lines. Each trial runs in a process of its own, since a door opens once and a
 * call may do anything. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "plugin/hook.h"
#include "plugin/nccl_functions.h"
#include "plugin/nccl_plugin_abi.h"
#include "tests/crowd.h"
#include "tests/nccl_releases/from_inside.h"

#define ENTRY_BYTES 16
#define DEADLINE_SECONDS 60

/* Bits of a trial's exit status. */
#define REDIRECTED 1
#define CALLED_THROUGH 2
#define RESTORED 4
#define OPENED 8
#define ABSENT 16
#define FAR 32

static int calls;
static void *nccl;

#define TRIAL(entry, parameters, arguments)                                                        \
    static ncclResult_t(*original_##entry) parameters;                                             \
    static ncclResult_t replacement_##entry parameters                                             \
    {                                                                                              \
        calls++;                                                                                   \
        return original_##entry arguments;                                                         \
    }
LAMPREY_NCCL_INTERCEPTED(TRIAL)
LAMPREY_NCCL_ORDERED(TRIAL)
#undef TRIAL

struct function {
    const char *name;
    void *replacement;
    void **original;
};

static const struct function functions[] = {
#define TRIAL(entry, parameters, arguments)                                                        \
    {"nccl" #entry, (void *)replacement_##entry, (void **)&original_##entry},
    LAMPREY_NCCL_INTERCEPTED(TRIAL) LAMPREY_NCCL_ORDERED(TRIAL)
#undef TRIAL
};
#define FUNCTIONS (sizeof(functions) / sizeof(functions[0]))

/* No function has more arguments than 11, of a register each but for the 128-byte id that
 * CommInitRank and CommInitRankConfig take by value on the stack. All are zero: NCCL refuses or has
 * nothing to do. CommShrink and CommSplit look at their communicators before they check them. */
static ncclResult_t call_with_nothing(const char *name, void *function)
{
    static char no_communicator[16 << 20]; /* as large as one */
    ncclComm_t child = NULL;
    ncclUniqueId id;

    memset(&id, 0, sizeof(id));
    if (strcmp(name, "ncclCommShrink") == 0) {
        return ((ncclResult_t(*)(void *, int *, int, ncclComm_t *, ncclConfig_t *, int))function)(
            no_communicator, NULL, 0, &child, NULL, 0);
    }
    if (strcmp(name, "ncclCommSplit") == 0) {
        return ((ncclResult_t(*)(void *, int, int, ncclComm_t *, ncclConfig_t *))function)(
            no_communicator, 0, 0, &child, NULL);
    }
    if (strcmp(name, "ncclCommInitRank") == 0) {
        return ((ncclResult_t(*)(ncclComm_t *, int, ncclUniqueId, int))function)(NULL, 0, id, 0);
    }
    if (strcmp(name, "ncclCommInitRankConfig") == 0) {
        return ((ncclResult_t(*)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *))function)(
            NULL, 0, id, 0, NULL);
    }
    return ((ncclResult_t(*)(void *, void *, void *, void *, void *, void *, void *, void *, void *,
                             void *, void *))function)(NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                                                       NULL, NULL, NULL, NULL);
}

static uintptr_t distance(uintptr_t a, uintptr_t b)
{
    return a < b ? b - a : a - b;
}

static int try_function(const struct function *function)
{
    uint8_t before[ENTRY_BYTES];
    char reason[256];
    struct lamprey_hooks *hooks = NULL;
    void *entry = dlsym(nccl, function->name);
    struct lamprey_hook_target target = {function->name, entry, function->replacement,
                                         function->original};
    ncclResult_t expected = ncclSuccess;
    int done = 0;

    memcpy(before, entry, sizeof(before));
    expected = call_with_nothing(function->name, entry);
    if (lamprey_hooks_install(LAMPREY_HOOK_TEXT, &target, 1, &hooks, reason, sizeof(reason)) !=
        LAMPREY_OK) {
        fprintf(stderr, "%s: %s\n", function->name, reason);
        return 0;
    }
    if (memcmp(before, entry, sizeof(before)) != 0) {
        done |= REDIRECTED;
    }
    if (distance((uintptr_t)entry, (uintptr_t)*function->original) > LAMPREY_TEST_JUMP_REACH) {
        done |= FAR;
    }
    if (call_with_nothing(function->name, entry) == expected && calls == 1) {
        done |= CALLED_THROUGH;
    }
    lamprey_hooks_remove(hooks);
    if (memcmp(before, entry, sizeof(before)) == 0 &&
        call_with_nothing(function->name, entry) == expected && calls == 1) {
        done |= RESTORED;
    }
    return done;
}

/* Bits that the trial reached; 0 where it crashed or hung, with a line on standard error. */
static int in_child(int (*trial)(const void *argument), const void *argument, const char *name)
{
    int status = 0;
    pid_t child = 0;

    fflush(NULL);
    child = fork();
    if (child == 0) {
        alarm(DEADLINE_SECONDS);
        _exit(trial(argument));
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        perror("fork");
        return 0;
    }
    if (!WIFEXITED(status)) {
        fprintf(stderr, "%s: killed by signal %d\n", name, WTERMSIG(status));
        return 0;
    }
    return WEXITSTATUS(status);
}

static int function_trial(const void *argument)
{
    return try_function(argument);
}

static bool check_functions(void)
{
    int present = 0;
    int redirected = 0;
    int called = 0;
    int restored = 0;
    int far = 0;

    for (size_t i = 0; i < FUNCTIONS; i++) {
        int done = 0;

        if (dlsym(nccl, functions[i].name) == NULL) {
            continue;
        }
        present++;
        done = in_child(function_trial, &functions[i], functions[i].name);
        redirected += (done & REDIRECTED) != 0;
        called += (done & CALLED_THROUGH) != 0;
        restored += (done & RESTORED) != 0;
        far += (done & FAR) != 0;
    }
    printf("present=%d\nredirected=%d\ncalled=%d\nrestored=%d\nfar=%d\n", present, redirected,
           called, restored, far);
    return present > 0 && redirected == present && called == present && restored == present;
}

struct door {
    const char *kind;
    int version;
    const char *plugin;
};

/* NCCL's logger is no public symbol. This function is inside NCCL as well, takes anything for its
 * level and prints nothing. */
static lamprey_nccl_logger stand_in_logger(void)
{
    return (lamprey_nccl_logger)dlsym(nccl, "ncclGetErrorString");
}

static bool open_tuner(const void *table, int version)
{
    struct lamprey_abi_nvl_domains domains = {1, 2, 2};
    struct lamprey_abi_tuner_constants constants = {0};
    float costs[7][3] = {{1.0F}};
    float before[7][3];
    int algorithm = -1;
    int protocol = -1;
    int channels = 0;
    void *context = NULL;
    ncclResult_t result = ncclSystemError;

    memcpy(before, costs, sizeof(costs));
    if (version >= 5) {
        const struct lamprey_abi_tuner_v5 *v5 = table; /* v6 begins with v5 */
        result = v5->init(&context, 1, 2, 1, stand_in_logger(), &domains, &constants);
        if (result == ncclSuccess) {
            result = v5->get_coll_info(context, 4, 8192, 1, (float **)costs, 7, 3, 0, &channels);
        }
        if (result == ncclSuccess) {
            result = v5->finalize(context);
        }
    } else if (version == 4) {
        const struct lamprey_abi_tuner_v4 *v4 = table;
        result = v4->init(2, 1, stand_in_logger(), &context);
        if (result == ncclSuccess) {
            result = v4->get_coll_info(context, 4, 8192, 1, (float **)costs, 7, 3, 0, &channels);
        }
        if (result == ncclSuccess) {
            result = v4->destroy(context);
        }
    } else if (version == 3) {
        const struct lamprey_abi_tuner_v3 *v3 = table;
        result = v3->init(2, 1, stand_in_logger(), &context);
        if (result == ncclSuccess) {
            result = v3->get_coll_info(context, 4, 8192, 1, (float **)costs, 7, 3, &channels);
        }
        if (result == ncclSuccess) {
            result = v3->destroy(context);
        }
    } else if (version == 2) {
        const struct lamprey_abi_tuner_v2 *v2 = table;
        result = v2->init(2, 1, stand_in_logger(), &context);
        if (result == ncclSuccess) {
            result = v2->get_coll_info(context, 4, 8192, 0, 1, 1, &algorithm, &protocol, &channels);
        }
        if (result == ncclSuccess) {
            result = v2->destroy(context);
        }
    }
    return result == ncclSuccess && algorithm == -1 && protocol == -1 && channels == 0 &&
           memcmp(before, costs, sizeof(costs)) == 0;
}

static bool open_env(const void *table, int version)
{
    const struct lamprey_abi_env_v2 *v2 = table;
    const struct lamprey_abi_env_v1 *v1 = table;
    ncclResult_t result = ncclSystemError;

    if (version == 2) {
        result = v2->init(2, 30, 7, "", stand_in_logger());
    } else {
        result = (ncclResult_t)lamprey_call_from_inside(nccl, (void *)v1->init, 2, 28, 9,
                                                        (uintptr_t) "", 0, 0);
    }
    return result == ncclSuccess && v1->get_env("PATH") == getenv("PATH");
}

static bool open_profiler(const void *table, int version)
{
    const struct lamprey_abi_profiler_v6 *v6 = table;
    const struct lamprey_abi_profiler_v4 *v4 = table;
    const struct lamprey_abi_profiler_v3 *v3 = table;
    void *context = &calls;
    int mask = -1;
    ncclResult_t result = ncclSystemError;

    if (version >= 5) {
        result = v6->init(&context, 1, &mask, "name", 1, 2, 0, stand_in_logger());
    } else if (version == 4) {
        result = v4->init(&context, &mask, "name", 1, 1, 2, 0, stand_in_logger());
    } else {
        result = (ncclResult_t)lamprey_call_from_inside(nccl, (void *)v3->init, (uintptr_t)&context,
                                                        (uintptr_t)&mask, 0, 0, 0, 0);
    }
    return result == ncclSuccess && mask == 0 && context == NULL;
}

static bool open_network(const void *table, int version, bool collective)
{
    const struct lamprey_abi_net_v12 *net_v12 = table;
    const struct lamprey_abi_collnet_v12 *collnet_v12 = table;
    const struct lamprey_abi_net_v10 *net_v10 = table;
    const struct lamprey_abi_net_v9 *older = table;
    int traffic_class = -1;
    int count = -1;
    void *context = NULL;
    ncclResult_t result = ncclSystemError;

    if (version >= 11 && collective) {
        result = collnet_v12->init(&context, 1, stand_in_logger());
    } else if (version >= 11) {
        result = net_v12->init(&context, 1, &traffic_class, stand_in_logger(), NULL);
    } else if (version == 10 && !collective) {
        result = net_v10->init(stand_in_logger(), NULL);
    } else {
        result = older->init(stand_in_logger());
    }
    if (result != ncclSuccess || older->devices(&count) != ncclSuccess || count != 0) {
        return false;
    }
    if (version >= 11) {
        result = collective ? collnet_v12->finalize(context) : net_v12->finalize(context);
    }
    return result == ncclSuccess;
}

static void remember(uint8_t entries[FUNCTIONS][ENTRY_BYTES])
{
    for (size_t i = 0; i < FUNCTIONS; i++) {
        void *entry = dlsym(nccl, functions[i].name);

        memset(entries[i], 0, ENTRY_BYTES);
        if (entry != NULL) {
            memcpy(entries[i], entry, ENTRY_BYTES);
        }
    }
}

/* The door opened, every function is redirected, and NCCL still answers as before. */
static int door_trial(const void *argument)
{
    const struct door *door = argument;
    uint8_t before[FUNCTIONS][ENTRY_BYTES];
    char symbol[64];
    bool opened = false;
    void *all_reduce = dlsym(nccl, "ncclAllReduce");
    ncclResult_t expected = call_with_nothing("ncclAllReduce", all_reduce);
    void *plugin = NULL;
    const void *table = NULL;

    remember(before);
    plugin = dlopen(door->plugin, RTLD_NOW | RTLD_LOCAL);
    snprintf(symbol, sizeof(symbol), "nccl%s_v%d", door->kind, door->version);
    table = plugin != NULL ? dlsym(plugin, symbol) : NULL;
    if (table == NULL) {
        fprintf(stderr, "%s: %s\n", symbol, dlerror());
        return plugin != NULL ? ABSENT : 0;
    }
    if (strcmp(door->kind, "TunerPlugin") == 0) {
        opened = open_tuner(table, door->version);
    } else if (strcmp(door->kind, "EnvPlugin") == 0) {
        opened = open_env(table, door->version);
    } else if (strcmp(door->kind, "Profiler") == 0) {
        opened = open_profiler(table, door->version);
    } else {
        opened = open_network(table, door->version, strcmp(door->kind, "CollNetPlugin") == 0);
    }
    dlclose(plugin);
    if (!opened) {
        fprintf(stderr, "%s: not opened as expected\n", symbol);
        return 0;
    }
    for (size_t i = 0; i < FUNCTIONS; i++) {
        void *entry = dlsym(nccl, functions[i].name);

        if (entry != NULL && memcmp(before[i], entry, ENTRY_BYTES) == 0) {
            fprintf(stderr, "%s: %s not redirected\n", symbol, functions[i].name);
            return 0;
        }
    }
    if (call_with_nothing("ncclAllReduce", all_reduce) != expected) {
        fprintf(stderr, "%s: ncclAllReduce answers otherwise\n", symbol);
        return 0;
    }
    return OPENED;
}

static bool mentions(const char *file, size_t size, const char *text)
{
    return memmem(file, size, text, strlen(text) + 1) != NULL;
}

/* Tries the versions of a kind that the file's strings name and prints them: !5 did not open, (5)
 * is newer than the library, which is no fault while the release goes on to an older one. */
static bool check_kind(const char *file, size_t size, const char *kind, const char *plugin)
{
    bool all = true;
    int newest = 0;
    int newest_opened = 0;
    char list[64] = "";

    for (int version = 1; version <= 20; version++) {
        struct door door = {kind, version, plugin};
        char symbol[64];
        size_t length = strlen(list);
        int done = 0;

        snprintf(symbol, sizeof(symbol), "nccl%s_v%d", kind, version);
        if (!mentions(file, size, symbol)) {
            continue;
        }
        done = in_child(door_trial, &door, symbol);
        newest = version;
        newest_opened = done == OPENED ? version : newest_opened;
        all = all && (done == OPENED || done == ABSENT);
        snprintf(list + length, sizeof(list) - length, "%s%s%d%s", length > 0 ? "," : "",
                 done == OPENED   ? ""
                 : done == ABSENT ? "("
                                  : "!",
                 version, done == ABSENT ? ")" : "");
    }
    all = all && (newest == 0 || newest_opened > 0);
    printf("%s=%s\n", kind, list[0] != '\0' ? list : "-");
    return all;
}

static bool check_doors(const char *path, const char *plugin)
{
    static const char *const kinds[] = {"TunerPlugin", "EnvPlugin", "Profiler", "NetPlugin",
                                        "CollNetPlugin"};
    struct stat status;
    bool all = true;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    char *file = MAP_FAILED;

    if (descriptor >= 0 && fstat(descriptor, &status) == 0) {
        file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    }
    if (file == MAP_FAILED) {
        perror(path);
        return false;
    }
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        all = check_kind(file, (size_t)status.st_size, kinds[i], plugin) && all;
    }
    return all;
}

int main(int argc, char **argv)
{
    ncclResult_t (*get_version)(int *version) = NULL;
    int version = 0;
    bool all = false;

    if (!(argc == 3 && strcmp(argv[1], "functions") == 0) &&
        !(argc == 4 && strcmp(argv[1], "doors") == 0)) {
        fprintf(stderr, "usage: check_release functions LIBNCCL\n"
                        "       check_release doors LIBNCCL LIBLAMPREY\n");
        return 64;
    }
    nccl = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
    if (nccl == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    get_version = (ncclResult_t(*)(int *))dlsym(nccl, "ncclGetVersion");
    if (get_version == NULL || get_version(&version) != ncclSuccess) {
        fprintf(stderr, "%s: no version\n", argv[2]);
        return 1;
    }
    if (argc == 3) {
        printf("version=%d.%d.%d\n", version / 10000, version / 100 % 100, version % 100);
        all = check_functions();
    } else {
        all = check_doors(argv[2], argv[3]);
    }
    return all ? 0 : 1;
}
