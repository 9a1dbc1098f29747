/* SPDX-License-Identifier: Apache-2.0 */
/* From a machine or a file to tables: tree, annotate, read, in this order. */
#ifndef LAMPREY_TOPOLOGY_LOAD_H
#define LAMPREY_TOPOLOGY_LOAD_H

#include "topology/read.h"
#include "topology/reason.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LAMPREY_LOAD_NVML "libnvidia-ml.so.1"

/* nvml: NVML's soname or path. Where it can't be asked, the GPUs are unknown and note says why,
 * which is a success; else note is empty. Not thread-safe: NVML isn't everywhere.
 * The caller destroys the machine. EIO or ENOMEM with a reason. */
int lamprey_load_live(const char *nvml, struct lamprey_machine **machine,
                      const struct lamprey_reason *note, const struct lamprey_reason *reason);

int lamprey_load_file(const char *xml_path, struct lamprey_machine **machine,
                      const struct lamprey_reason *reason);

/* Writes this machine's annotated topology as XML to path. note: as above. */
int lamprey_load_export(const char *nvml, const char *path, const struct lamprey_reason *note,
                        const struct lamprey_reason *reason);

#ifdef __cplusplus
}
#endif

#endif
