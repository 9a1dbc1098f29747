/* SPDX-License-Identifier: Apache-2.0 */
/* Who and where this rank is, and what this process has to say against being served. */
#ifndef LAMPREY_PLUGIN_IDENTITY_H
#define LAMPREY_PLUGIN_IDENTITY_H

#include "plugin/device.h"
#include "plugin/nccl.h"
#include "topology/domain.h"

/* Random, the same for all communicators of this process. */
void lamprey_identity_process(uint8_t process[16]);

/* The GPU's place: host id, PCI id, UUID and NVLink as liblamprey-topology.so sees it, and as the
 * user has told NCCL of it (NCCL_HOSTID, NCCL_MNNVL_...). reason is left alone unless something is
 * missing. */
void lamprey_identity_gpu(const struct lamprey_device *device, struct lamprey_domain_record *record,
                          char *reason, size_t reason_size);

/* Settings of the user, ours and NCCL's, under which we stand down; reason is left alone if there
 * is none. nccl: NULL for a workspace, which needs none. */
void lamprey_identity_stand_down(const struct lamprey_nccl *nccl, char *reason, size_t reason_size);

/* Does NCCL run the kernels of several communicators of a GPU in launch order here? */
bool lamprey_identity_serialised(const struct lamprey_nccl *nccl);

#endif
