/* SPDX-License-Identifier: Apache-2.0 */
/* One all-reduce over the new staging memory before anybody trusts it: every rank stores to every
 * other and waits for what it stores. */
#ifndef LAMPREY_PLUGIN_SELFTEST_H
#define LAMPREY_PLUGIN_SELFTEST_H

#include "plugin/exchange.h"

/* On exchange's stream; waits for it, for a peer no longer than timeout_ms. Every rank must have
 * mapped all others. LAMPREY_ERROR_SYSTEM: a store did not arrive in time or not as it was. */
enum lamprey_status lamprey_selftest(struct lamprey_exchange *exchange,
                                     const struct lamprey_agreed *agreed,
                                     struct lamprey_workspace *workspace, uint32_t timeout_ms);

/* The same way takes a vote once the self-test has passed, where nothing else joins the ranks:
 * *refusing becomes the first rank that refuses, or -1. LAMPREY_ERROR_TIMEOUT: a rank has no vote,
 * since its self-test failed. */
enum lamprey_status lamprey_selftest_vote(struct lamprey_exchange *exchange,
                                          const struct lamprey_agreed *agreed,
                                          struct lamprey_workspace *workspace, uint32_t timeout_ms,
                                          bool refuses, int *refusing);

#endif
