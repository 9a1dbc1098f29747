/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tests/bench/served.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include "plugin/lamprey.h"

typedef ncclResult_t (*get_stats)(ncclComm_t comm, struct lampreyStats *stats);

#define MOST_LIBRARIES 8

struct names {
    char name[MOST_LIBRARIES][4096];
    int count;
};

/* Opens nothing: here the loader holds a lock that another thread's dlopen may wait for. */
static int visit(struct dl_phdr_info *info, size_t size, void *context)
{
    struct names *names = context;
    (void)size;
    if (strstr(info->dlpi_name, "lamprey") != NULL && names->count < MOST_LIBRARIES) {
        snprintf(names->name[names->count++], sizeof names->name[0], "%s", info->dlpi_name);
    }
    return 0;
}

/* NCCL opens its plugins privately, under whatever path or name it was given. */
static get_stats find_stats(void)
{
    get_stats found = NULL;
    struct names names = {.count = 0};
    dl_iterate_phdr(visit, &names);
    for (int i = 0; i < names.count && found == NULL; i++) {
        void *library = dlopen(names.name[i], RTLD_LAZY | RTLD_NOLOAD);
        if (library != NULL) {
            *(void **)&found = dlsym(library, "lampreyGetStats");
            dlclose(library);
        }
    }
    return found;
}

int64_t bench_served(ncclComm_t comm)
{
    const get_stats stats_of = find_stats();
    struct lampreyStats stats = {.size = sizeof stats};
    if (stats_of == NULL) {
        return -1;
    }
    /* Before the first all-reduce it doesn't know the communicator. */
    return stats_of(comm, &stats) == ncclSuccess ? (int64_t)stats.served : 0;
}
