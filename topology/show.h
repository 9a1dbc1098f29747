/* SPDX-License-Identifier: Apache-2.0 */
/* A machine, or the ranks of a communicator, for people (text, picture) and for scripts (JSON). */
#ifndef LAMPREY_TOPOLOGY_SHOW_H
#define LAMPREY_TOPOLOGY_SHOW_H

#include <stdio.h>

#include "topology/verdict.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LAMPREY_SHOW_TEXT = 96 };

/* "18 x 26562, switch", and where the fabric stands. */
const char *lamprey_show_links(const struct lamprey_gpu_links *links, char text[LAMPREY_SHOW_TEXT]);
const char *lamprey_show_fabric(const struct lamprey_gpu_links *links,
                                char text[LAMPREY_SHOW_TEXT]);

/* note: why nothing is known of the NVLinks, or "". verdict: as by lamprey_verdict_of_machine.
 * Nobody looks at errors of out here: ask ferror. */
void lamprey_show_machine_text(FILE *out, const struct lamprey_machine *machine, const char *note,
                               const struct lamprey_verdict *verdict);
void lamprey_show_machine_json(FILE *out, const struct lamprey_machine *machine, const char *note,
                               const struct lamprey_verdict *verdict);
/* ENOMEM, else 0. */
int lamprey_show_machine_svg(FILE *out, const struct lamprey_machine *machine,
                             const struct lamprey_verdict *verdict);

void lamprey_show_ranks_text(FILE *out, const struct lamprey_rank *ranks,
                             const struct lamprey_verdict *verdict);
void lamprey_show_ranks_json(FILE *out, const struct lamprey_rank *ranks,
                             const struct lamprey_verdict *verdict);

#ifdef __cplusplus
}
#endif

#endif
