/* SPDX-License-Identifier: Apache-2.0 */
/* What every door calls: finds the NCCL image that called us and redirects its functions to
 * plugin/intercept.c. */
#ifndef LAMPREY_PLUGIN_ATTACH_H
#define LAMPREY_PLUGIN_ATTACH_H

#ifdef __cplusplus
extern "C" {
#endif

/* address: anything inside the NCCL image (its logger, a return address). door: "tuner", "env",
 * ..., for the log. Idempotent per image, thread-safe, never fails visibly: what can't be done is
 * logged once with its reason. */
void lamprey_attach(const void *address, const char *door);

/* Attaches to every NCCL image loaded so far (LD_PRELOAD and default-named doors). Returns how many
 * are attached. */
int lamprey_attach_loaded(const char *door);

#ifdef __cplusplus
}
#endif

#endif
