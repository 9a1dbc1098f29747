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

/* The machine in an hwloc XML file, or with xml_path NULL this one, by nvml, NVML's soname or path.
 * Where NVML can't be asked, the GPUs are unknown and note says why, which is a success; else note
 * is empty (it is left alone for a file). export_path, unless NULL, gets the annotated topology as
 * XML, if all else goes well. Not thread-safe: NVML isn't everywhere. The caller destroys the
 * machine. EIO or ENOMEM with a reason. */
int lamprey_load(const char *xml_path, const char *nvml, const char *export_path,
                 struct lamprey_machine **machine, const struct lamprey_reason *note,
                 const struct lamprey_reason *reason);

/* The two cases that write nothing. */
int lamprey_load_live(const char *nvml, struct lamprey_machine **machine,
                      const struct lamprey_reason *note, const struct lamprey_reason *reason);
int lamprey_load_file(const char *xml_path, struct lamprey_machine **machine,
                      const struct lamprey_reason *reason);

#ifdef __cplusplus
}
#endif

#endif
