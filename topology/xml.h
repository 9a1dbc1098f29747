/* SPDX-License-Identifier: Apache-2.0 */
/* hwloc trusts the files that it reads: one whose objects lack sets, or are nested in ways that no
 * machine is, makes it read through null pointers. So files are looked at before hwloc sees them.
 */
#ifndef LAMPREY_TOPOLOGY_XML_H
#define LAMPREY_TOPOLOGY_XML_H

#include "topology/reason.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether the file has the form in which hwloc 2 and 3 write topologies: one Machine with all else
 * inside, memory and processors in it, and on every object the sets that its type has. What the
 * objects say is not looked at. EIO or ENOMEM with a reason. */
int lamprey_xml_check(const char *path, const struct lamprey_reason *reason);

#ifdef __cplusplus
}
#endif

#endif
