/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/identity.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/config.h"

static uint8_t process_id[16];

static void make_process_id(void)
{
    if (getrandom(process_id, sizeof process_id, 0) != (ssize_t)sizeof process_id) {
        const pid_t pid = getpid();
        memcpy(process_id, &pid, sizeof pid);
    }
}

void lamprey_identity_process(uint8_t process[16])
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_process_id);
    memcpy(process, process_id, sizeof process_id);
}

/* FNV-1a over 64 bits. */
static uint64_t hash(uint64_t seed, const void *data, size_t bytes)
{
    const uint8_t *byte = data;
    for (size_t i = 0; i < bytes; i++) {
        seed = (seed ^ byte[i]) * 0x100000001b3ull;
    }
    return seed;
}

/* One boot of one kernel, with the same shared memory and the same abstract socket names: only then
 * can descriptors be passed. A hostname says neither. And one host to the user, who may cut it up
 * for NCCL. */
static bool host_id(uint8_t id[16])
{
    char boot[64] = "";
    struct stat shm = {0};
    struct stat network = {0};
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    size_t length = file ? fread(boot, 1, sizeof boot, file) : 0;
    if (file) {
        fclose(file);
    }
    if (length == 0 || stat("/proc/self/ns/net", &network) != 0) {
        return false;
    }
    stat("/dev/shm", &shm); /* absent counts as one more kind of equal */
    /* Ranks that share a GPU use this name to get past NCCL, which refuses them on one host. */
    const char *name = lamprey_config_get()->share_gpu ? NULL : getenv("NCCL_HOSTID");
    uint64_t halves[2];
    for (int i = 0; i < 2; i++) {
        uint64_t seed = 0xcbf29ce484222325ull + (uint64_t)i;
        seed = hash(seed, boot, length);
        seed = hash(seed, &shm.st_dev, sizeof shm.st_dev);
        seed = hash(seed, &network.st_ino, sizeof network.st_ino);
        halves[i] = hash(seed, name, name ? strlen(name) : 0);
    }
    memcpy(id, halves, sizeof halves);
    return true;
}

/* A number of NCCL's, in any base that C writes; what can't be one leaves NCCL's default. */
static int64_t nccl_number(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);
    errno = 0;
    const int64_t number = text && *text ? strtoll(text, NULL, 0) : otherwise;
    return errno ? otherwise : number;
}

/* What the user tells NCCL of the fabric holds here too, or our domains would differ from NCCL's.
 */
static void believe_user(struct lamprey_domain_record *record)
{
    struct lamprey_gpu_links *links = &record->links;
    const int64_t cluster = nccl_number("NCCL_MNNVL_UUID", -1);
    const int64_t clique = nccl_number("NCCL_MNNVL_CLIQUE_ID", -1);
    record->fabric_off = nccl_number("NCCL_MNNVL_ENABLE", 2) == 0;
    if (links->fabric_state == 0) { /* no fabric at all */
        return;
    }
    if (cluster != -1) {
        memcpy(links->fabric_uuid, &cluster, sizeof cluster);
        memcpy(links->fabric_uuid + sizeof cluster, &cluster, sizeof cluster);
    }
    if (clique == -2) { /* a clique is a chassis */
        links->fabric_clique = links->chassis;
    } else if (clique != -1) {
        links->fabric_clique = (uint32_t)clique;
    }
}

static lamprey_topology_describe describe;
static char describe_missing[160];

/* liblamprey-topology.so lies beside this library. */
static void open_topology(void)
{
    char path[4096];
    Dl_info own;
    if (!dladdr((const void *)(uintptr_t)open_topology, &own) || !own.dli_fname) {
        snprintf(describe_missing, sizeof describe_missing, "the library can't find itself");
        return;
    }
    const char *slash = strrchr(own.dli_fname, '/');
    snprintf(path, sizeof path, "%.*sliblamprey-topology.so",
             slash ? (int)(slash + 1 - own.dli_fname) : 0, own.dli_fname);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "lampreyTopologyDescribe") : NULL;
    if (!symbol) {
        const char *error = dlerror();
        snprintf(describe_missing, sizeof describe_missing, "no topology (%.120s)",
                 error ? error : path);
        return;
    }
    describe = (lamprey_topology_describe)(uintptr_t)symbol;
}

void lamprey_identity_gpu(const struct lamprey_device *device, struct lamprey_domain_record *record,
                          char *reason, size_t reason_size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char text[96] = "";
    pthread_once(&once, open_topology);
    record->pci_id = device->pci_id;
    record->pid = (uint32_t)getpid();
    record->share_gpu = (uint32_t)lamprey_config_get()->share_gpu;
    memcpy(record->gpu_uuid, device->uuid, sizeof record->gpu_uuid);
    if (!host_id(record->host_id)) {
        snprintf(reason, reason_size, "the host can't be identified (/proc is missing)");
        return;
    }
    if (!describe) {
        snprintf(reason, reason_size, "%s", describe_missing);
        return;
    }
    int error = describe(LAMPREY_TOPOLOGY_VERSION, lamprey_config_get()->topology, device->pci_id,
                         &record->links, sizeof record->links, text, sizeof text);
    if (error) {
        snprintf(reason, reason_size, "topology: %s", text[0] ? text : strerror(error));
        return;
    }
    believe_user(record);
}

/* A variable of NCCL's that is set to something else than 0. */
static bool switched_on(const char *name)
{
    const char *value = getenv(name);
    return value && *value && strcmp(value, "0") != 0;
}

bool lamprey_identity_serialised(const struct lamprey_nccl *nccl)
{
    return atomic_load(&nccl->shares_resources) || switched_on("NCCL_LAUNCH_ORDER_IMPLICIT") ||
           switched_on("NCCL_COMM_SPLIT_SHARE_RESOURCES") ||
           switched_on("NCCL_COMM_SHRINK_SHARE_RESOURCES");
}

void lamprey_identity_stand_down(const struct lamprey_nccl *nccl, char *reason, size_t reason_size)
{
    static const char *const variables[] = {"NCCL_P2P_DISABLE", "NCCL_CHECK_POINTERS",
                                            "NCCL_LAUNCH_ORDER_IMPLICIT"};
    const char *level = getenv("NCCL_P2P_LEVEL");
    const char *mode = nccl ? getenv("NCCL_CHECK_MODE") : NULL;
    const char *blocking = nccl ? getenv("NCCL_COMM_BLOCKING") : NULL;
    const size_t count = nccl ? sizeof variables / sizeof variables[0] : 1;
    if (lamprey_config_get()->disable) {
        snprintf(reason, reason_size, "LAMPREY_DISABLE is set");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (switched_on(variables[i])) {
            snprintf(reason, reason_size, "%s is set", variables[i]);
            return;
        }
    }
    if (mode && strncasecmp(mode, "DEBUG_", 6) == 0) { /* any other value is NCCL's default */
        snprintf(reason, reason_size, "NCCL_CHECK_MODE=%.40s", mode);
    } else if (level && (strcasecmp(level, "LOC") == 0 || strcmp(level, "0") == 0)) {
        snprintf(reason, reason_size, "NCCL_P2P_LEVEL=%s", level);
    } else if ((nccl && atomic_load(&nccl->nonblocking)) ||
               (blocking && strcmp(blocking, "0") == 0)) {
        snprintf(reason, reason_size, "this process makes non-blocking communicators");
    } else if (nccl && nccl->over_got) {
        snprintf(reason, reason_size,
                 "NCCL's code can't be redirected, and callers' slots miss some calls");
    } else if (lamprey_driver_missing()[0]) {
        snprintf(reason, reason_size, "%s", lamprey_driver_missing());
    }
}
