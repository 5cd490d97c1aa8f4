/* SPDX-License-Identifier: GPL-2.0-only */
/* The maps of the datapath, and what is counted. */
#pragma once
#include "state.h"

/* Made with room for max_connections (loader/shapes.py): what is compiled does for any limit. */
/* As BPF_SOCKHASH() of BCC, which lacks lookup(). */
struct peers_table_t {
	struct end key;
	int leaf;
	void *(*lookup)(struct end *);
	int (*update)(struct end *, int *);
	int (*delete)(struct end *);
	int (*sock_hash_update)(void *, struct end *, __u64);
	int (*msg_redirect_hash)(void *, struct end *, __u64);
	__u32 max_entries;
};
__attribute__((section("maps/sockhash"))) struct peers_table_t peers = { .max_entries = 1 };
BPF_SK_STORAGE(sockets, struct sock_state);
/* So is this, and for more, so that declined clients do not push out those of live pairs. */
BPF_TABLE("lru_hash", struct pair, struct handshake, handshakes, 1);
/*
 * Arrays, where a newer entry takes the place of an older one: connections pass here that will not
 * be accelerated, and a hash table would cost the most of it. An entry lost, or half overwritten,
 * leaves a connection on TCP; or, of `reasons`, what `explain` is asked to what it finds out by
 * itself.
 */
BPF_ARRAY(flow_syns, struct flow_syn, SYN_RECORDS);
BPF_ARRAY(client_syns, struct client_syn, SYN_RECORDS);
BPF_ARRAY(reasons, struct recorded_reason, REASONS);
BPF_ARRAY(unmatched, struct unmatched_client, UNMATCHED_CLIENTS);
BPF_F_TABLE("hash", struct address, __u32, own_addresses, OWN_ADDRESSES, BPF_F_NO_PREALLOC);
/* Number of the directory that a step leads to, or EXCLUDED. */
BPF_F_TABLE("hash", struct step, __u32, excluded, EXCLUDED_STEPS, BPF_F_NO_PREALLOC);
/* LRU, as connections may close on their way out; one that is evicted starts again. */
BPF_TABLE("lru_hash", struct pair, struct leaving, leaving, LEAVING_PAIRS);
/* Ends that left with unread TCP data that their pollers may not know of. */
BPF_TABLE("lru_hash", struct end, __u32, unread_left, LEAVING_PAIRS);
/* Ends that sockredir_join puts on the sockhash, by the address of their struct sock. */
BPF_F_TABLE("hash", __u64, struct joining, joining, JOINING, BPF_F_NO_PREALLOC);
/* Ids of the cgroups to which the programs are attached: only sockets there, or below, may join. */
BPF_F_TABLE("hash", __u64, __u32, scope_cgroups, SCOPE_CGROUPS, BPF_F_NO_PREALLOC);
BPF_ARRAY(settings, struct settings, 1);
BPF_ARRAY(walked, struct walked, 1);
BPF_ARRAY(visits, struct visits, 1);
BPF_ARRAY(ports, struct ports, 1);
/*
 * How often something happened to an accelerated socket that either direction has to know before
 * its next message: it was shut down or closed, or a guard refused it. Apart from what is written
 * more often.
 */
BPF_ARRAY(change_count, __u64, 1);
/* Written once per grant, not per message. */
BPF_ARRAY(unread_memory, struct unread_memory, 1);
/* The same of each cgroup with a memory limit, by the address of its struct page_counter. */
BPF_TABLE("lru_hash", __u64, __u64, cgroup_memory, LIMITED_CGROUPS);
BPF_PERCPU_ARRAY(counters, struct counters, 1);
BPF_PERCPU_ARRAY(line, struct connection, 1); /* of a listing, too long for the stack */
BPF_ARRAY(manifest, struct manifest, 1);
BPF_TABLE("lru_hash", struct flow, struct caller, callers, TRACED_CONNECTIONS);
BPF_TABLE("lru_hash", struct listener, struct owner, listeners, TRACED_CONNECTIONS);
BPF_TABLE("lru_hash", struct pair, struct closing, closing, TRACED_CONNECTIONS);
BPF_HASH(learned, struct listener, struct learned_entry, LEARNED_ENTRIES);
/* By listener: messages that acceleration saved, less those that pairing cost; see learn/. */
BPF_TABLE("lru_hash", struct listener, __s32, balances, BALANCED_LISTENERS);
/* By enum request: 1 if it was made, and the daemon has not begun to carry it out. */
BPF_ARRAY(requested, __u64, REQUEST_JOIN + 1);
/*
 * On how many connections the programs of a listener have read by an ordinary recv(2), or those of a
 * user's clients of it: learn/readers.h.
 */
BPF_TABLE("lru_hash", struct listener, __u32, known_readers, KNOWN_READERS);
BPF_RINGBUF_OUTPUT(requests, 1); /* wakes the daemon to walk; full means it is awake already */
BPF_RINGBUF_OUTPUT(events, 64);

#define MIX 0x9e3779b97f4a7c15ULL /* 2^64 / golden ratio */

/* Its place in such an array, modulo the size of that; loader/records.py: hash_of(). */
inline_fn __u32 hash_of(const struct flow *flow)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	const __u64 *chunks = (const void *)flow;
	__u64 hash = s ? s->seed : 0;

	for (int i = 0; i < sizeof(*flow) / sizeof(*chunks); i++)
		hash = (hash ^ hash >> 32 ^ chunks[i]) * MIX;
	return hash >> 32;
}

inline_fn void read_server_address(struct server_address *address, const struct flow *flow)
{
	__builtin_memcpy(address->ip, flow->server_ip, 16);
	address->netns = flow->netns;
	address->port = flow->server_port;
	address->pad = 0;
}

inline_fn struct counters *counters_here(void)
{
	int zero = 0;

	return counters.lookup(&zero);
}

/* Atomic although per CPU: a task that is preempted between load and store would lose counts. */
inline_fn void count(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

/* An index that the verifier believes: the compiler may find the mask needless, and drop it. */
inline_fn __u64 cause_slot(enum cause cause)
{
	__u64 slot = cause;

	asm volatile("" : "+r"(slot));
	return slot & (CAUSE_SLOTS - 1);
}

inline_fn void count_accelerated(void)
{
	struct counters *c = counters_here();

	if (c)
		count(&c->accelerated_connections, 1);
}

inline_fn void count_declined(enum cause cause)
{
	struct counters *c = counters_here();

	if (c)
		count(&c->declined[cause_slot(cause)], 1);
}

inline_fn void count_paused(enum cause cause)
{
	struct counters *c = counters_here();

	if (c)
		count(&c->paused[cause_slot(cause)], 1);
}

inline_fn void count_retired(enum cause cause)
{
	struct counters *c = counters_here();

	if (c)
		count(&c->retired[cause_slot(cause)], 1);
}
