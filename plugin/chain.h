/* SPDX-License-Identifier: Apache-2.0 */
/* The user's own plugin behind one of ours, since NCCL has one slot of each kind. */
#ifndef LAMPREY_PLUGIN_CHAIN_H
#define LAMPREY_PLUGIN_CHAIN_H

/* Opens a plugin under the names that NCCL would try: name itself, then libnccl-<kind>-<name>.so
 * unless name is a path or a file name. "none" and "" open nothing. Stays open for the life of the
 * process. NULL when nothing was opened; a failure was then logged at warn level, naming setting.
 */
void *lamprey_chain_open(const char *kind, const char *setting, const char *name);

/* The table <prefix><version> of the newest version in oldest..newest; NULL if there is none. */
const void *lamprey_chain_find(void *handle, const char *prefix, int newest, int oldest,
                               int *version);

#endif
