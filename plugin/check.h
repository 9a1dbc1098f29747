/* SPDX-License-Identifier: Apache-2.0 */
/* LAMPREY_CHECK=1: every all-reduce of a served communicator, whoever runs it, is compared with the
 * other ranks' before it starts. */
#ifndef LAMPREY_PLUGIN_CHECK_H
#define LAMPREY_PLUGIN_CHECK_H

#include "kernels/check.h"
#include "plugin/launch.h"

/* A call that NCCL is to run: its check on its stream, in order with the communicator's other work.
 * Nothing where calls aren't checked, or where the type is none that we know: it may be wrong, and
 * NCCL will say so. */
ncclResult_t lamprey_check_call(struct lamprey_comm *comm, const struct lamprey_call *call);

/* What a call's check compares; of rows, traits are 16 bits of what else must be equal. */
struct lamprey_signature lamprey_check_signature(const struct lamprey_call *call);
struct lamprey_signature lamprey_check_signature_of_rows(uint64_t tokens, uint32_t hidden,
                                                         ncclDataType_t type, uint32_t traits);

/* Puts the check in front of what stream gets next. Legal inside a stream capture. The device's
 * context must be current. */
enum lamprey_status lamprey_check_launch(struct lamprey_workspace *workspace,
                                         const struct lamprey_signature *signature,
                                         CUstream stream);

/* Has a check found that another rank called otherwise? */
bool lamprey_check_failed(const struct lamprey_workspace *workspace);

#endif
