/* SPDX-License-Identifier: Apache-2.0 */
/* Plugins as NCCL 2.28.9 loads them: the same variables, file names, symbols, order and life time.
 */
#define _GNU_SOURCE
#include "tests/emulator/nccl/internal.h"

#include <dlfcn.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <unistd.h>

#define ALGORITHMS 7
#define PROTOCOLS 3
#define MAX_NETS 8

typedef void (*logger)(int level, unsigned long subsystems, const char *file, int line,
                       const char *format, ...);

struct env_plugin_v1 {
    const char *name;
    ncclResult_t (*init)(uint8_t major, uint8_t minor, uint8_t patch, const char *suffix);
    ncclResult_t (*finalize)(void);
    const char *(*get)(const char *name);
};

struct nvl_domain_info {
    int domains;
    int min_ranks;
    int max_ranks;
};

struct tuner_constants {
    double base_latencies[ALGORITHMS][PROTOCOLS];
    double hardware_latencies[3][ALGORITHMS][PROTOCOLS];
    double bandwidths[5][4][3];
};

struct tuner_plugin_v5 {
    const char *name;
    ncclResult_t (*init)(void **context, uint64_t comm, size_t nranks, size_t nodes, logger log,
                         struct nvl_domain_info *domains, struct tuner_constants *constants);
    ncclResult_t (*choose)(void *context, int function, size_t bytes, int aggregated, float **costs,
                           int algorithms, int protocols, int registered, int *channels);
    ncclResult_t (*finalize)(void *context);
};

struct tuner_plugin_v4 {
    const char *name;
    ncclResult_t (*init)(size_t nranks, size_t nodes, logger log, void **context);
    ncclResult_t (*choose)(void *context, int function, size_t bytes, int aggregated, float **costs,
                           int algorithms, int protocols, int registered, int *channels);
    ncclResult_t (*destroy)(void *context);
};

struct tuner_plugin_v3 {
    const char *name;
    ncclResult_t (*init)(size_t nranks, size_t nodes, logger log, void **context);
    ncclResult_t (*choose)(void *context, int function, size_t bytes, int aggregated, float **costs,
                           int algorithms, int protocols, int *channels);
    ncclResult_t (*destroy)(void *context);
};

struct tuner_plugin_v2 {
    const char *name;
    ncclResult_t (*init)(size_t nranks, size_t nodes, logger log, void **context);
    ncclResult_t (*choose)(void *context, int function, size_t bytes, int collnet, int nvls,
                           int aggregated, int *algorithm, int *protocol, int *channels);
    ncclResult_t (*destroy)(void *context);
};

/* The five members of a profiler are the same in all versions but for init and the descriptors. */
struct profiler_plugin {
    const char *name;
    void *init;
    void *start_event;
    void *stop_event;
    void *record_event_state;
    ncclResult_t (*finalize)(void *context);
};

/* The first members of a network; finalize exists in v11 only. */
struct net_plugin {
    const char *name;
    void *init;
    ncclResult_t (*devices)(int *count);
    void *others[17];
    ncclResult_t (*finalize)(void *context);
};

struct net_config {
    int traffic_class;
};

struct emulated_plugins {
    void *tuner_context;
    void *profiler_context;
    void *net_contexts[MAX_NETS];
    bool has_profiler;
    bool has_tuner;
    bool has_nets;
    bool net_ready[MAX_NETS];
};

/* One kind of plugin: what is open now. A failure is for ever, as in NCCL. */
struct slot {
    void *handle;
    const void *table;
    int version;
    int users;
    bool failed;
};

static pthread_once_t env_once = PTHREAD_ONCE_INIT;
static const struct env_plugin_v1 *env;
static void *env_handle;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct slot tuner;
static struct slot profiler;
static struct slot nets[MAX_NETS];
static size_t net_count;
static int net_users;
static int profiler_mask;
static int tuner_loads; /* communicators so far; see release_tuner */

/* environment
 * -------------------------------------------------------------------------------------------------
 */

static void read_conf(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[1024];
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\r\n")] = '\0';
        char *equals = strchr(line, '=');
        if (line[0] == '#' || equals == NULL || equals == line) {
            continue;
        }
        *equals = '\0';
        setenv(line, equals + 1, 0);
    }
    if (file != NULL) {
        fclose(file);
    }
}

static void read_conf_files(void)
{
    const char *named = getenv("NCCL_CONF_FILE");
    if (named != NULL && *named != '\0') {
        read_conf(named);
    } else {
        struct passwd *user = getpwuid(getuid());
        char path[1024];
        if (user != NULL) {
            snprintf(path, sizeof(path), "%s/.nccl.conf", user->pw_dir);
            read_conf(path);
        }
    }
    read_conf("/etc/nccl.conf");
}

/* NCCL's naming: as given, then <prefix>-<name>.so unless it is a path or a complete library name.
 * "STATIC_PLUGIN", or any beginning of it, means the program itself. */
static void *open_library(const char *prefix, const char *name)
{
    char path[256];
    void *handle = NULL;
    if (name != NULL && *name != '\0' && strncasecmp(name, "STATIC_PLUGIN", strlen(name)) == 0) {
        return dlopen(NULL, RTLD_NOW | RTLD_LOCAL);
    }
    if (name == NULL || *name == '\0') {
        snprintf(path, sizeof(path), "%s.so", prefix);
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    } else {
        snprintf(path, sizeof(path), "%s", name);
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        size_t length = strlen(path);
        bool complete =
            strncmp(path, "lib", 3) == 0 && length > 3 && strcmp(path + length - 3, ".so") == 0;
        if (handle == NULL && strchr(path, '/') == NULL && !complete) {
            INFO("Could not open %s: %s", path, dlerror());
            snprintf(path, sizeof(path), "%s-%s.so", prefix, name);
            handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        }
    }
    if (handle == NULL) {
        INFO("Could not find: %s: %s", path, dlerror());
    } else {
        INFO("Successfully opened %s", path);
    }
    return handle;
}

static void env_at_exit(void)
{
    if (env != NULL) {
        env->finalize();
        env = NULL;
        dlclose(env_handle);
    }
}

static void load_env(void)
{
    read_conf_files();
    const char *name = getenv("NCCL_ENV_PLUGIN");
    if (name != NULL && strcasecmp(name, "none") == 0) {
        return;
    }
    void *handle = open_library("libnccl-env", name);
    const struct env_plugin_v1 *table = handle != NULL ? dlsym(handle, "ncclEnvPlugin_v1") : NULL;
    if (table == NULL) {
        if (handle != NULL) {
            dlclose(handle);
        }
        return;
    }
    if (table->init(2, 28, 9, "") != ncclSuccess) {
        fprintf(stderr, "emulator: env plugin %s failed to initialise\n", table->name);
        dlclose(handle);
        return;
    }
    env_handle = handle;
    env = table;
    atexit(env_at_exit);
}

void emulated_env_init(void)
{
    pthread_once(&env_once, load_env);
}

const char *emulated_getenv(const char *name)
{
    /* Within load_env itself the log may ask. */
    const struct env_plugin_v1 *table = env;
    return table != NULL ? table->get(name) : getenv(name);
}

/* symbols
 * --------------------------------------------------------------------------------------------------------
 */

static const void *find_table(void *handle, const char *stem, int newest, int oldest, int *version)
{
    for (int v = newest; handle != NULL && v >= oldest; v--) {
        char name[64];
        snprintf(name, sizeof(name), "%s_v%d", stem, v);
        const void *table = dlsym(handle, name);
        if (table != NULL) {
            *version = v;
            INFO("Using %s", name);
            return table;
        }
    }
    return NULL;
}

/* net
 * ------------------------------------------------------------------------------------------------------------
 */

static ncclResult_t profiler_callback(void **handle, int type, void *parent, int64_t id, void *data)
{
    (void)handle;
    (void)type;
    (void)parent;
    (void)id;
    (void)data;
    return ncclSuccess;
}

static void open_nets(void)
{
    const char *names = emulated_getenv("NCCL_NET_PLUGIN");
    char list[1024];
    snprintf(list, sizeof(list), "%s", names != NULL ? names : "");
    char *rest = list;
    char *name = NULL;
    while (net_count < MAX_NETS && (name = strsep(&rest, ",")) != NULL) {
        if (strcasecmp(name, "none") == 0) {
            continue;
        }
        void *handle = open_library("libnccl-net", name);
        struct slot *slot = &nets[net_count];
        memset(slot, 0, sizeof(*slot));
        slot->table = find_table(handle, "ncclNetPlugin", 11, 6, &slot->version);
        if (slot->table == NULL) {
            if (handle != NULL) {
                dlclose(handle);
            }
            continue;
        }
        slot->handle = handle;
        net_count++;
    }
}

static ncclResult_t init_net(const struct slot *slot, ncclComm_t comm, void **context)
{
    static struct net_config config = {-1};
    const struct net_plugin *net = slot->table;
    if (slot->version == 11) {
        ncclResult_t (*init)(void **, uint64_t, struct net_config *, logger, void *) =
            (ncclResult_t(*)(void **, uint64_t, struct net_config *, logger, void *))net->init;
        return init(context, comm->hash, &config, emulated_log,
                    (void *)(uintptr_t)profiler_callback);
    }
    if (slot->version == 10) {
        ncclResult_t (*init)(logger, void *) = (ncclResult_t(*)(logger, void *))net->init;
        return init(emulated_log, (void *)(uintptr_t)profiler_callback);
    }
    ncclResult_t (*init)(logger) = (ncclResult_t(*)(logger))net->init;
    return init(emulated_log);
}

static void load_nets(ncclComm_t comm)
{
    if (net_users++ == 0) {
        net_count = 0;
        open_nets();
    }
    comm->plugins->has_nets = true;
    for (size_t i = 0; i < net_count; i++) {
        int devices = 0;
        const struct net_plugin *net = nets[i].table;
        if (init_net(&nets[i], comm, &comm->plugins->net_contexts[i]) != ncclSuccess ||
            net->devices(&devices) != ncclSuccess || devices <= 0) {
            INFO("NET/Plugin: %s offers no device, going on", net->name);
            continue;
        }
        INFO("NET/Plugin: %s offers %d devices, which the emulator does not need", net->name,
             devices);
        comm->plugins->net_ready[i] = true;
    }
}

static void release_nets(ncclComm_t comm)
{
    for (size_t i = 0; i < net_count; i++) {
        const struct net_plugin *net = nets[i].table;
        if (comm->plugins->net_ready[i] && nets[i].version == 11 && net->finalize != NULL) {
            net->finalize(comm->plugins->net_contexts[i]);
        }
    }
    if (--net_users == 0) {
        for (size_t i = 0; i < net_count; i++) {
            dlclose(nets[i].handle);
        }
        net_count = 0;
    }
}

/* profiler
 * --------------------------------------------------------------------------------------------------------
 */

/* A plugin without a file of its own may sit in the first network's. */
static void *open_with_net(const char *prefix, const char *variable)
{
    const char *name = emulated_getenv(variable);
    if (name != NULL && strcasecmp(name, "none") == 0) {
        return NULL;
    }
    void *handle = open_library(prefix, name);
    if (handle == NULL && net_count > 0) {
        Dl_info info = {0};
        if (dladdr(nets[0].table, &info) != 0) {
            handle = dlopen(info.dli_fname, RTLD_NOW | RTLD_LOCAL);
        }
    }
    return handle;
}

static ncclResult_t init_profiler(ncclComm_t comm, void **context)
{
    const struct profiler_plugin *plugin = profiler.table;
    const char *name = comm->name[0] != '\0' ? comm->name : NULL;
    if (profiler.version >= 5) {
        ncclResult_t (*init)(void **, uint64_t, int *, const char *, int, int, int, logger) =
            (ncclResult_t(*)(void **, uint64_t, int *, const char *, int, int, int,
                             logger))plugin->init;
        return init(context, comm->hash, &profiler_mask, name, 1, comm->nranks, comm->rank,
                    emulated_log);
    }
    if (profiler.version == 4) {
        ncclResult_t (*init)(void **, int *, const char *, uint64_t, int, int, int, logger) =
            (ncclResult_t(*)(void **, int *, const char *, uint64_t, int, int, int,
                             logger))plugin->init;
        return init(context, &profiler_mask, name, comm->hash, 1, comm->nranks, comm->rank,
                    emulated_log);
    }
    ncclResult_t (*init)(void **, int *) = (ncclResult_t(*)(void **, int *))plugin->init;
    return init(context, &profiler_mask);
}

/* An error of a profiler is no error of the communicator. */
static bool open_profiler(void)
{
    if (profiler.table == NULL && !profiler.failed) {
        profiler.handle = open_with_net("libnccl-profiler", "NCCL_PROFILER_PLUGIN");
        profiler.table = find_table(profiler.handle, "ncclProfiler", 5, 1, &profiler.version);
        profiler.failed = profiler.table == NULL;
        if (profiler.failed && profiler.handle != NULL) {
            dlclose(profiler.handle);
        }
    }
    profiler.users += profiler.table != NULL ? 1 : 0;
    return profiler.table != NULL;
}

static void release_profiler(ncclComm_t comm)
{
    const struct profiler_plugin *plugin = profiler.table;
    if (comm->plugins->profiler_context != NULL) {
        plugin->finalize(comm->plugins->profiler_context);
    }
    if (--profiler.users == 0) {
        dlclose(profiler.handle);
        memset(&profiler, 0, sizeof(profiler));
    }
}

/* tuner
 * ------------------------------------------------------------------------------------------------------------
 */

static bool open_tuner(void)
{
    if (tuner.table == NULL && !tuner.failed) {
        tuner.handle = open_with_net("libnccl-tuner", "NCCL_TUNER_PLUGIN");
        tuner.table = find_table(tuner.handle, "ncclTunerPlugin", 5, 2, &tuner.version);
        tuner.failed = tuner.table == NULL;
        if (tuner.failed && tuner.handle != NULL) {
            dlclose(tuner.handle);
        }
        tuner_loads = 0;
    }
    if (tuner.table != NULL) {
        tuner.users++;
        tuner_loads++;
    }
    return tuner.table != NULL;
}

static ncclResult_t init_tuner(ncclComm_t comm, void **context)
{
    size_t nranks = (size_t)comm->nranks;
    if (tuner.version >= 5) {
        const struct tuner_plugin_v5 *plugin = tuner.table;
        struct nvl_domain_info domains = {1, comm->nranks, comm->nranks};
        struct tuner_constants constants = {0};
        return plugin->init(context, comm->hash, nranks, 1, emulated_log, &domains, &constants);
    }
    const struct tuner_plugin_v4 *plugin = tuner.table; /* v2 to v4 differ only in choose */
    return plugin->init(nranks, 1, emulated_log, context);
}

/* In 2.28.9 only the communicator that loaded the tuner gives its reference back, so with several
 * it stays open. */
static void release_tuner(ncclComm_t comm)
{
    const struct tuner_plugin_v4 *plugin = tuner.table;
    if (tuner.version >= 5) {
        ((const struct tuner_plugin_v5 *)tuner.table)->finalize(comm->plugins->tuner_context);
    } else {
        plugin->destroy(comm->plugins->tuner_context);
    }
    tuner.users--;
    if (tuner.users == 0 && tuner_loads == 1) {
        dlclose(tuner.handle);
        memset(&tuner, 0, sizeof(tuner));
    }
}

ncclResult_t emulated_plugins_collective(const struct emulated_task *task, int same_group)
{
    static const int functions[] = {
        [TASK_ALL_REDUCE] = 4, [TASK_REDUCE] = 1,         [TASK_BROADCAST] = 0,
        [TASK_ALL_GATHER] = 2, [TASK_REDUCE_SCATTER] = 3,
    };
    ncclComm_t comm = task->comm;
    if (comm == NULL || comm->plugins == NULL || !comm->plugins->has_tuner) {
        return ncclSuccess;
    }
    float costs[ALGORITHMS][PROTOCOLS];
    for (int algorithm = 0; algorithm < ALGORITHMS; algorithm++) {
        for (int protocol = 0; protocol < PROTOCOLS; protocol++) {
            costs[algorithm][protocol] = algorithm < 2 ? 10.0f + (float)protocol : -1.0f;
        }
    }
    int channels = 0;
    int function = functions[task->kind];
    size_t bytes = task->count * emulated_type_bytes(task->type);
    void *context = comm->plugins->tuner_context;
    float **table = (float **)costs;
    if (tuner.version >= 5) {
        const struct tuner_plugin_v5 *plugin = tuner.table;
        return plugin->choose(context, function, bytes, same_group, table, ALGORITHMS, PROTOCOLS, 0,
                              &channels);
    }
    if (tuner.version == 4) {
        const struct tuner_plugin_v4 *plugin = tuner.table;
        return plugin->choose(context, function, bytes, same_group, table, ALGORITHMS, PROTOCOLS, 0,
                              &channels);
    }
    if (tuner.version == 3) {
        const struct tuner_plugin_v3 *plugin = tuner.table;
        return plugin->choose(context, function, bytes, same_group, table, ALGORITHMS, PROTOCOLS,
                              &channels);
    }
    const struct tuner_plugin_v2 *plugin = tuner.table;
    int algorithm = -1;
    int protocol = -1;
    return plugin->choose(context, function, bytes, 0, 0, same_group, &algorithm, &protocol,
                          &channels);
}

/* --------------------------------------------------------------------------------------------------------------------
 */

ncclResult_t emulated_plugins_load(ncclComm_t comm)
{
    comm->plugins = calloc(1, sizeof(*comm->plugins));
    if (comm->plugins == NULL) {
        return ncclSystemError;
    }
    pthread_mutex_lock(&mutex);
    load_nets(comm);
    comm->plugins->has_profiler = open_profiler();
    comm->plugins->has_tuner = open_tuner();
    pthread_mutex_unlock(&mutex);
    /* Plugins' init functions of several communicators run at the same time, as in NCCL. */
    if (comm->plugins->has_profiler &&
        init_profiler(comm, &comm->plugins->profiler_context) != ncclSuccess) {
        INFO("PROFILER/Plugin: init failed, going on without");
        comm->plugins->profiler_context = NULL;
    }
    ncclResult_t result = ncclSuccess;
    if (comm->plugins->has_tuner) {
        result = init_tuner(comm, &comm->plugins->tuner_context);
        if (result != ncclSuccess) {
            WARN("The tuner plugin failed to initialise: %d", result);
        }
    }
    return result;
}

void emulated_plugins_unload(ncclComm_t comm)
{
    if (comm->plugins == NULL) {
        return;
    }
    pthread_mutex_lock(&mutex);
    if (comm->plugins->has_tuner) {
        release_tuner(comm);
    }
    if (comm->plugins->has_profiler) {
        release_profiler(comm);
    }
    if (comm->plugins->has_nets) {
        release_nets(comm);
    }
    pthread_mutex_unlock(&mutex);
    free(comm->plugins);
    comm->plugins = NULL;
}
