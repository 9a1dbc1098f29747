/* SPDX-License-Identifier: Apache-2.0 */
/* Settings: one table row each (config.c), read from the environment once, at load. */
#ifndef LAMPREY_PLUGIN_CONFIG_H
#define LAMPREY_PLUGIN_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_pdl {
    LAMPREY_PDL_OFF,
    LAMPREY_PDL_WAIT,
    LAMPREY_PDL_SIGNAL,
};

enum lamprey_hook_choice {
    LAMPREY_HOOK_CHOICE_AUTO, /* text, then GOT; nothing is served over GOT */
    LAMPREY_HOOK_CHOICE_TEXT,
    LAMPREY_HOOK_CHOICE_GOT, /* GOT only, and serve over it */
};

struct lamprey_config {
    int64_t disable;   /* LAMPREY_DISABLE */
    int64_t max_bytes; /* LAMPREY_MAX_BYTES: largest message served; -1 = by world size */
    int64_t max_ctas;  /* LAMPREY_MAX_CTAS: lanes per communicator */
    int64_t algorithm; /* LAMPREY_ALGORITHM: enum lamprey_algorithm_choice */
    int64_t pdl;       /* LAMPREY_PDL: enum lamprey_pdl */
    int64_t hook;      /* LAMPREY_HOOK: enum lamprey_hook_choice */
    int64_t timeout;   /* LAMPREY_TIMEOUT: seconds; 0 = none */
    int64_t check;     /* LAMPREY_CHECK: compare calls over the ranks */
    int64_t stats;     /* LAMPREY_STATS */
    int64_t share_gpu; /* LAMPREY_SHARE_GPU: several ranks of a communicator on one GPU (tests) */
    const char *topology;     /* LAMPREY_TOPOLOGY: hwloc XML instead of the live machine, or NULL */
    const char *tuner_plugin; /* LAMPREY_TUNER_PLUGIN: chained tuner, or NULL */
    const char *env_plugin;   /* LAMPREY_ENV_PLUGIN: chained env plugin, or NULL */
};

/* Reads the environment at the first call; thread-safe; never NULL. */
const struct lamprey_config *lamprey_config_get(void);

/* One row of the table, for documentation and tests. */
struct lamprey_setting {
    const char *name;
    const char *default_text;
    const char *help;
};

/* Row index, or NULL past the end. */
const struct lamprey_setting *lamprey_config_row(size_t index);

/* For tests: parses environ-style "NAME=value" strings (NULL-terminated) into config; counts what
 * it warned of. */
int lamprey_config_parse(const char *const *environment, struct lamprey_config *config);

#ifdef __cplusplus
}
#endif

#endif
