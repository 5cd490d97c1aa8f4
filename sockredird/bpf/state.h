/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Records: what the programs keep of sockets, connections and listeners, and what they tell the
 * daemon. loader/records.py reads this file, so a field has a name and an offset in one place.
 */
#pragma once
#include "kernel.h"
#include "causes.h"

/* One connection: the sequence numbers both ends agreed on in the handshake, each ISN + 1. */
struct pair {
	__u32 client_seq;
	__u32 server_seq;
};

enum side { CLIENT = 0, SERVER = 1 };

/* Key of the sockhash: one end of a pair. */
struct end {
	struct pair pair;
	__u32 side;
};

/* Addresses are IPv6; IPv4 is stored v4-mapped, so that a mapped socket meets its IPv4 peer. */
struct flow {
	__u32 client_ip[4];
	__u32 server_ip[4];
	__u64 netns;	   /* netns cookie */
	__u16 client_port; /* host byte order */
	__u16 server_port;
	__u32 pad;
};

/* Where the server end is, as it sees itself: NAT and another netns hide that from the client. */
struct server_address {
	__u32 ip[4];
	__u64 netns;
	__u32 port;
	__u32 pad;
};

/* That a listener in scope has answered a SYN from this address, in whichever netns. */
struct client_syn {
	__u32 client_ip[4];
	__u32 client_port;
	__u32 pad;
	__u64 time; /* CLOCK_MONOTONIC, ns; 0: nothing is said here */
};

/* That a listener in scope has answered this very SYN. */
struct flow_syn {
	struct flow flow; /* as the listener sees it; in one netns the client does not differ */
	__u64 time;	  /* as above */
};

/* A client end that no listener in scope has answered, as far as it can know. */
struct unmatched_client {
	struct pair pair;
	struct flow flow;
};

/* An address of a netns. */
struct address {
	__u32 ip[4];
	__u64 netns;
};

/* A step on the path of an excluded cgroup: a name in a directory, which is numbered from 1 on. */
struct step {
	__u32 directory; /* 0: the root */
	char name[128];
};

/* What the client end leaves for the server end to find, and the other way round. */
struct handshake {
	struct flow flow; /* as the client end sees it */
	__u32 answered;	  /* by a listener in its netns, under the addresses in `flow` */
	__u32 joined;	  /* bit per side: of a pair that is joined after it was established */
	__u64 client_sk;  /* kernel address; 0: the client declined */
	__u64 server_sk;  /* kernel address; 0: the server has not joined */
	__u64 client_st;  /* kernel addresses of their sock_state */
	__u64 server_st;
};

/* One end of a connection that is in scope and not accelerated; written by sockredir_candidates. */
struct candidate {
	__u64 sk;     /* kernel address of the struct sock */
	__u64 netns;  /* cookie */
	__u64 cgroup; /* id */
	__u32 local_ip[4];
	__u32 remote_ip[4];
	__u16 local_port; /* host byte order */
	__u16 remote_port;
	__u32 listens;	  /* it is a listener: nothing below is set */
	__u32 isn_1;	  /* its initial sequence number + 1, or one less */
	__u32 peer_isn_1; /* its peer's, exactly */
	__u32 segments;	  /* with data, sent and received so far */
	__u32 polls;	  /* its program polls, see carry/reader.h */
	__u32 cause;	  /* enum cause: why it stays on TCP */
};

/* One end of a pair that is to be put on the sockhash; by the address of its struct sock. */
struct joining {
	struct pair pair;
	__u32 side;
	__u32 pad;
	struct flow flow; /* as the client end sees it */
	struct server_address server;
};

/* What came of it. */
struct joined {
	__u64 sk;
	__u32 cause; /* enum cause: why it could not be put there; CAUSE_NONE: it is there */
	__u32 pad;
};

enum mode {
	BY_TCP =
		0, /* the next message goes by TCP, unless the direction may begin (carry/begin.h) */
	REDIRECT,  /* the next message is redirected, unless the direction has to pause */
	NATIVE,	   /* TCP for good: the pair leaves the sockhash */
};

/* What a direction waits for before it begins, besides the rule of carry/begin.h. */
enum awaits {
	AWAITS_NOTHING = 0,
	AWAITS_MESSAGE, /* its first one, which goes by TCP */
	AWAITS_READ,	/* that its reader's copied_seq moves on from begin_after */
};

/* What is known of the program that reads what a direction carries. */
enum reader {
	READER_UNKNOWN = 0,
	READER_POLLS, /* it does not sleep inside recv(): it polls, or its descriptor is O_NONBLOCK */
};

/* A process that uses a socket. */
struct owner {
	__u32 pid; /* as the initial pid namespace counts */
	char comm[16];
};

/* What a direction had carried at a time; a rate is the difference of two. */
struct sample {
	__u64 time; /* CLOCK_MONOTONIC, ns; 0: never taken */
	__u64 bytes;
	__u64 messages;
};

/* How much a direction had sent at a time. */
struct checkpoint {
	__u64 bytes;
	__u64 messages;
};

/*
 * Per socket: this end, and the direction that starts here. Each field has one kind of writer.
 *
 * field                written by                          read by               ordered by
 * by pairing           pairing, before the sockhash entry  all                   the entry's insertion
 * peer_sk, peer_st     pairing, or a message               sender, walk          barriers
 * by the sender        the sender, under its socket lock   walk, listing: may    nothing; an estimate,
 *                                                          be one message old    but for those below
 *   mode, borders      the same                            walk                  barriers
 *   awaits,            the same                            as a connection ends  barriers
 *     begin_after
 * waiting              the sender                          the peer's sender     nothing; it looks again
 * stop                 the walk                            sender                RCU grace period (epoch)
 * borders_seen         the walk                            walk, sender          barriers
 * border_since ..      the walk                            the walk
 *   walk
 * guard_cause,         guards, detectors, the walk         sender, walk          barriers
 *   reset_at
 * sample .. listing    listings                            listings              one listing at a time
 *
 * Barriers, by the function that calls for them. Each comes between two accesses to what another
 * processor reads, or writes, the other way round. What goes wrong without is in
 * docs/architecture/memory-order.md.
 *
 * in                     first, then                                        pairs with
 * join                   server_st and the sockhash, server_sk              read_handshake
 * complete               client_st and server_st, joined                    read_handshake
 * read_handshake         server_sk or joined, the other state               server_established, complete
 * find_peer              peer_st, peer_sk, the handshake's end              find_other_end
 * find_other_end         the handshake, peer_sk, peer_st                    find_peer
 * has_read               begin_after, awaits                                may_have_read
 * may_have_read          awaits, begin_after                                has_read
 * announce_change        what is announced, the count, what follows         what_changed, sockredir_msg,
 *                                                                             begins, note_readers
 * sockredir_msg          a reference to the psock, the count                announce_change
 * what_changed           the count, what was announced                      announce_change
 * begins                 copied_seq, the count                              announce_change
 * note_readers           copied_seq, guard_cause                            announce_change
 * harmed                 reset_at, guard_cause                              is_stuck_in_splice
 * sockredir_spliced      reset_at, guard_cause                              would_be_overtaken
 * is_stuck_in_splice     guard_cause, reset_at                              harmed
 * would_be_overtaken     guard_cause, reset_at                              sockredir_spliced
 * to_be_reset            reset_at, the psock queue                          harmed
 * force_to_tcp           mode, borders                                      at_border
 * by_tcp_on_member       mode, borders, borders_seen                        at_border
 * at_border              borders, mode and references;                      by_tcp_on_member,
 *                          borders_seen, borders                              force_to_tcp
 * ask                    what a request is about, its mark                  visit
 * visit                  the mark (the daemon clears it), what to look at   ask
 * idle_sender            references, the queue                              tcp_bpf_sendmsg
 * quiet                  references, the queue                              tcp_bpf_sendmsg
 * none_in_flight         references, timers                                 sk_stop_timer
 * has_no_sender          references, the sleeper, references                tcp_bpf_recvmsg
 * sleeper_on             an entry of the wait queue, whether it is there    remove_wait_queue
 * reader_sleeps          senders, the lock's owner, sleeper, senders        sk_stream_wait_memory
 * nobody_in_tcp_recvmsg  copied_seq, the lock's owner, the sleeper,         tcp_recvmsg, sk_wait_data,
 *                          its reference and the owner                        tcp_bpf_recvmsg
 */
struct sock_state {
	/*
	 * What each message looks at is in two cache lines: with some hundred connections in use, others
	 * cost a miss each. The kernel's header in front of this (struct bpf_local_storage_data) has the
	 * first 8 bytes of the first one.
	 */
	/* written by pairing */
	struct end peer;
	/* written by the sender */
	__u32 grants; /* settings.grants when the budget was granted */
	__u8 mode;    /* enum mode */
	__u8 reason;  /* enum cause: why mode is NATIVE, or why it last was BY_TCP */
	__u8 reader;  /* enum reader */
	__u8 waiting; /* this sender spins until the peer's lock is free */
	__u8 began;   /* the direction was redirected at least once */
	/* written by the walk */
	__u8 stop;
	/* written by pairing */
	__u8 provisional; /* somebody answered this client's address, see pair/scope.h */
	__u8 joined;	  /* it was put on the sockhash after it was established */
	__u64 peer_sk;	  /* kernel address of the peer's struct sock, or 0 */
	/* written by the sender */
	__u64 change_count; /* the global count when this direction last looked at its ends */
	__u64 tcp_due;	    /* jiffies: when a message has to go by TCP (revalidation) */
	__u32 budget_bytes; /* until the peer's queue is looked at again */
	__u32 budget_messages;
	__u64 charged_cgroup; /* key in cgroup_memory, or 0 */
	__u64 room_until;     /* jiffies: before then that cgroup has room below its limit */
	__u64 sent_bytes;     /* redirected, cumulative */
	__u64 sent_messages;
	/* written by full_barrier() only */
	__u64 barrier;

	/* what only some look at; written by pairing */
	__u64 peer_st; /* kernel address of the peer's sock_state */
	struct end self;
	__u32 awaits;		      /* enum awaits; the sender writes later values */
	__u64 since;		      /* CLOCK_MONOTONIC, ns */
	struct flow flow;	      /* as the client end sees it */
	struct server_address server; /* known to the server end only */
	/* written by the sender */
	struct checkpoint checkpoint[16]; /* taken as budgets are granted */
	struct checkpoint drained; /* what was sent when the peer's queue was last seen empty */
	__u64 charged; /* bytes of kernel memory this direction has of unread_memory: discharge() */
	__u32 begin_after;  /* with AWAITS_READ: the reader's copied_seq at the first message */
	__u32 window_bytes; /* what may be unread; grows while the reader keeps up */
	__u32 window_messages;
	__u32 checkpoints;   /* taken so far */
	__u32 unknown_since; /* ms: reader has been READER_UNKNOWN at a message; 0: never */
	__u32 reader_copied; /* the reader's copied_seq at the last message with READER_UNKNOWN */
	__u32 reads_seen; /* messages before which it had read more, and at which it did not sleep */
	__u32 late_messages; /* that went by TCP with AWAITS_READ, as far as they matter */
	__u32 borders;	     /* how often the reader may need waking for TCP data */
	/* written by the walk */
	__u32 borders_seen;  /* those whose reader needs no more waking */
	__u32 border_since;  /* ms: when a walk met the reader at the others; 0: it has not */
	__u32 border_copied; /* the reader's copied_seq then */
	__u32 accounted;     /* its listener's balance has what this connection saved */
	__u32 walk;	     /* number of the last one that counted it */
	/* written by guards, and the walk */
	__u32 guard_cause; /* enum cause: why neither direction may redirect */
	__u32 reset_at;	   /* ms: when what a program asked for has gone wrong, or 0 */

	/* written by listings */
	struct sample sample[2]; /* newer, older */
	struct owner owner;	 /* the first process met that has this socket open */
	__u32 owners;		 /* processes that have */
	__u32 listing;		 /* in which owner and owners were found */
	__u32 pad2;
};

/*
 * CLOCK_MONOTONIC in ns as of the last timer interrupt, up to 10 ms ago: 5 ns where
 * bpf_ktime_get_ns() may take 50. Never to be compared but as a signed difference with a time that
 * may be exact.
 */
inline_fn __u64 recent_time(void)
{
	return bpf_ktime_get_coarse_ns();
}

/* CLOCK_MONOTONIC in milliseconds, modulo 2^32: compare by the sign of the difference. */
inline_fn __u32 now_ms(void)
{
	return bpf_ktime_get_ns() / 1000000;
}

/* Of BPF's atomics, those that return the old value order all of memory, on every architecture. */
inline_fn void full_barrier(struct sock_state *st)
{
	__sync_lock_test_and_set(&st->barrier, 1);
}

/* Orders loads: what is read after it was not read before it. */
inline_fn void load_barrier(struct sock_state *st)
{
#ifdef __x86_64__
	asm volatile("" ::: "memory"); /* loads are not reordered with loads */
#else
	full_barrier(st);
#endif
}

/* Orders stores in the same way. */
inline_fn void store_barrier(struct sock_state *st)
{
	load_barrier(st); /* stores are not reordered with stores on x86 either */
}

/* Leaves 0 and returns what was there, to one only of those that come at a time. */
inline_fn __u64 take_all(__u64 *amount)
{
	return __sync_lock_test_and_set(amount, 0);
}

/* A single pair on its way off the sockhash; touched by the iterator only. */
struct leaving {
	__u32 created;	  /* epoch of the first visit */
	__u32 stopped_in; /* epoch in which the last end was stopped */
	__u8 stopped;	  /* bit per side */
	__u8 reason;
	__u16 pad;
};

struct settings {
	__u32 stopped;	  /* Disable: no message is redirected any more */
	__u32 stopped_in; /* epoch of that */
	__u32 epoch;	  /* grows by one after each RCU grace period the daemon waited for */
	__u32 window_bytes;
	__u32 trace;		/* someone subscribed to events */
	__u32 listing;		/* number of the listing under way; 0: walks retire instead */
	__u32 addresses;	/* enum addresses */
	__u32 excludes;		/* number of excluded cgroups */
	__u32 learn;		/* leave listeners alone that gain nothing */
	__u32 ktls;		/* the kernel has TCP_ULP "tls", as far as the daemon has seen */
	__u32 blocking;		/* [scope] blocking_readers = "accelerate" */
	__u32 recent;		/* jiffies: a candidate has sent or received within these */
	__u32 revalidate;	/* jiffies: how often a busy direction sends a message by TCP */
	__u32 grants;		/* a budget of another number is not valid any more */
	__u32 answers_fionread; /* leave/fionread.c puts right what FIONREAD answers */
	__u32 begin_late;   /* leave/detect.c sees how programs read: carry/begin.h, has_read() */
	__u64 memory_bytes; /* the most that is unread, overhead included, of all connections */
	__u64 make_room;    /* idle pairs that this walk may take off; it counts down */
	__u64 trial;	    /* id of a cgroup left to a datapath that is being tried; 0: none */
	__u64 seed;	    /* so that nobody knows which addresses share a slot */
};

/* What the programs ask the daemon for. */
enum request {
	REQUEST_WALK,
	REQUEST_LEARNED, /* the map `learned` has changed */
	REQUEST_ULP,	 /* a program asked for TCP_ULP: is kernel TLS loaded now? */
	REQUEST_JOIN,	 /* a connection that is TCP for now may be joined */
};

enum addresses { ADDRESSES_LOOPBACK, ADDRESSES_HOST, ADDRESSES_ANY };

/* A bit per listening port: connections to it are in scope. */
struct ports {
	__u8 bits[65536 / 8];
};

enum event_kind {
	EVENT_ACTIVE,
	EVENT_ACCELERATED,
	EVENT_DECLINED,
	EVENT_RETIRED,
	EVENT_CLOSED,
	EVENT_LEARNED,
	EVENT_JOINED,
};

/* What one direction carried. */
struct totals {
	__u64 bytes; /* redirected */
	__u64 messages;
	__u64 tcp_bytes; /* left to TCP: of a connection that was retired, or is about to be */
};

struct event {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	__u32 kind;
	__u32 reason;		 /* enum cause */
	struct totals totals[2]; /* by enum side: the direction that starts there */
	struct owner owner[2];	 /* pid 0: not known */
	__u32 cpu;
	__u32 lost; /* events this CPU could not report so far, for want of room */
	struct flow flow;
};

/* The process that called connect(), while somebody traces. */
struct caller {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	struct owner owner;
	__u32 pad;
};

/* A listening socket; addresses are left out, as a wildcard listener answers to any. */
struct listener {
	__u64 netns;
	__u32 port;
	__u32 user; /* of whose clients' connections this is, as uid + 1; 0: of all */
};

/* Why and since when the connections of a listener are left alone. */
struct learned_entry {
	__u64 time;	    /* CLOCK_MONOTONIC, ns */
	__u64 cgroup;	    /* id, of the server end's */
	__u32 cause;	    /* enum cause */
	struct owner owner; /* who did what was learned; pid 0 if no program did */
	__u32 uid;	    /* the listener's, or of whose clients' connections it is the entry */
	__u32 pad;
};

/* The end of a traced connection that closed first. */
struct closing {
	struct totals totals;
	__u32 side;
	__u32 pad;
};

/* Why a connection was declined or retired, for whoever asks later. */
struct recorded_reason {
	struct flow flow;
	__u32 reason; /* enum cause */
	__u32 pad;
};

/* One line of a walk's output: an end that has to leave the sockhash, and cannot yet. */
struct member {
	struct end self;
	__u32 broken; /* it is to be reset, see leave/detect.c */
	struct flow flow;
};

/*
 * Kernel memory that is unread, overhead included, as far as it is granted (carry/bounds.h). There are
 * two totals: with another number of grants the daemon has it counted anew, in the one not in use, so
 * that what senders take and give back meanwhile goes to the one or to the other.
 */
struct unread_memory {
	__u64 charged[2]; /* bytes, by the lowest bit of settings.grants */
	__u64 recount;	  /* not 0: the next walk is to count anew, as a message found no room */
};

/* What a walk has met, and counted: the daemon clears it before, and reads it afterwards. */
struct walked {
	__u32 number;	   /* of this walk, not 0 */
	__u32 staying;	   /* ends that need not leave */
	__u32 connections; /* to which those belong */
	__u32 unsettled;   /* those of them that the next walk has to look at again */
	__u32 to_wake;	   /* ends that it noted in unread_left: leave/rewake.c is to run */
	__u32 recounts;	   /* set by the daemon: settings.grants has changed just now */
};

/* One end in a listing. */
struct view {
	__u64 bytes;
	__u64 messages;
	__u64 tcp_bytes;
	__u64 byte_rate; /* per second, since a listing at least SAMPLE_NS ago */
	__u64 message_rate;
	__u64 inode;  /* of the socket; 0: closed by its programs */
	__u64 cgroup; /* id */
	__u32 uid;
	__u32 unread; /* bytes in this socket's psock queue */
	__u32 mode;   /* of the direction that starts here */
	__u32 reason;
	__u32 owners;
	struct owner owner;
};

#define SAMPLE_NS 500000000ULL

/* A process with a TCP socket open, of whatever kind. */
struct opened {
	__u64 inode;
	struct owner owner;
	__u32 pad;
};

/* One connection in a listing. */
struct connection {
	__u64 age;	     /* ns since the server end joined */
	struct view view[2]; /* by enum side */
	__u32 known;	     /* bit per side: an end that closed cannot be looked at */
	__u32 leaving;
	__u32 joined; /* it was put on the sockhash after it was established */
	__u32 pad;
	struct pair pair;
	struct flow flow;	      /* as the client end sees it */
	struct server_address server; /* netns 0: not known */
};

#define VISITS 128

/* What the daemon asks of sockredir_visit, once for each key, and the lines that it answers. */
struct visits {
	__u32 next;  /* of the keys */
	__u32 lines; /* that are filled: struct connection, or struct member */
	struct end keys[VISITS];
	struct connection line[VISITS];
};

/* Per CPU. A pair counts once, and a message once for each time the sk_msg program runs. */
struct counters {
	__u64 accelerated_connections;
	__u64 joined_connections; /* of these, those put on the sockhash after they were established */
	__u64 redirected_messages;
	__u64 redirected_bytes;
	__u64 dropped_events;
	__u64 declined[CAUSE_SLOTS]; /* by enum cause */
	__u64 retired[CAUSE_SLOTS];
	__u64 paused[CAUSE_SLOTS]; /* a direction went to TCP, to come back at a quiet point */
};

/* The daemon's own notes (JSON): what these pins are, found again after a restart. */
struct manifest {
	char json[16384];
};
