/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Types and maps shared by the programs of the datapath:
 *   cgroup.h                 the cgroup of a socket
 *   scope.h                  which connections are in scope, and is the other end on this host?
 *   ends.h                   what is read of sockets, and of the state of other sockets
 *   inflight.h               is a redirect towards a socket on its way?
 *   learn.c                  listeners whose connections are left alone
 *   pair.c      sock_ops      pairs the two ends of a connection and puts them on the sockhash
 *   redirect.c  sk_msg        hands each message to the peer socket, or leaves it to TCP
 *   guard.c     setsockopt    takes connections off of which a program asks what only TCP can
 *   detect.c    fentry        the same of what no setsockopt announces, where the kernel has it
 *   walk.c      iter/sockmap  visits the sockhash: lists it, retires what must leave it
 *   nudge.c     iter/tcp      tells pollers of data on sockets that left
 * with trace.c (events) and list.c (what a listing shows of an end) between them.
 *
 * The loader concatenates the files and passes the offsets of kernel struct fields found in
 * the running kernel's BTF as -D OFF_<struct>_<field> (see btf.py for the list).
 */
#include <linux/types.h>
#include <uapi/linux/bpf.h>

#define inline_fn static inline __attribute__((always_inline))
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile __typeof__(x) *)&(x) = (v))

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
	__u64 netns;		/* netns cookie */
	__u16 client_port;	/* host byte order */
	__u16 server_port;
	__u32 pad;
};

/* Where the server end is, as it sees itself: NAT and another netns hide that from the client. */
struct place {
	__u32 ip[4];
	__u64 netns;
	__u32 port;
	__u32 pad;
};

/* That a listener in scope has answered a SYN from this address, in whichever netns. */
struct word {
	__u32 client_ip[4];
	__u32 client_port;
	__u32 pad;
	__u64 time;		/* CLOCK_MONOTONIC, ns; 0: nothing is said here */
};

/* That a listener in scope has answered this very SYN. */
struct answer {
	struct flow flow;	/* as the listener sees it; in one netns the client does not differ */
	__u64 time;		/* as above */
};

/* A client end that no listener in scope has answered, as far as it can know. */
struct unproven {
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
	__u32 directory;	/* 0: the root */
	char name[128];
};

/* What the client end leaves for the server end to find, and the other way round. */
struct handshake {
	struct flow flow;	/* as the client end sees it */
	__u32 answered;		/* by a listener in its netns, under the addresses in `flow` */
	__u32 pad;
	__u64 client_sk;	/* kernel address; 0: the client declined */
	__u64 server_sk;	/* kernel address; 0: the server has not joined */
	__u64 client_st;	/* kernel addresses of their sock_state */
	__u64 server_st;
};

enum mode {
	UNDECIDED = 0,	/* no message seen yet */
	REDIRECT,	/* every byte so far was redirected (I1) */
	NATIVE,		/* TCP for good (I2) */
};

/* Reasons are counted and reported by name; loader/records.py lists the same names in the same order. */
enum counter {
	ACCELERATED_CONNECTIONS,
	REDIRECTED_MESSAGES,
	REDIRECTED_BYTES,
	DROPPED_EVENTS,
	DECLINED_PEER_OUTSIDE,		/* the other end is not in scope */
	DECLINED_UNDECIDABLE,		/* it is, but SNAT hid that until it was too late */
	DECLINED_EARLY_DATA,		/* data went through TCP before the pair was complete */
	DECLINED_ULP,			/* kTLS, SMC or another upper layer protocol */
	DECLINED_MPTCP,
	DECLINED_ZEROCOPY,		/* SO_ZEROCOPY */
	DECLINED_REPAIR,		/* TCP_REPAIR: sequence numbers are the program's, not a handshake's */
	DECLINED_RCVLOWAT,		/* SO_RCVLOWAT above 1 */
	DECLINED_OOBINLINE,		/* SO_OOBINLINE */
	DECLINED_OPTION,		/* SO_TIMESTAMP, SO_TIMESTAMPING, SO_PEEK_OFF, TCP_INQ */
	DECLINED_LEARNED,		/* the listener is left alone, see learn.c */
	DECLINED_KERNEL_SOCKET,
	DECLINED_MISMATCH,		/* sequence numbers met, addresses did not; or their key is taken */
	DECLINED_MAP_FULL,		/* no room on the sockhash */
	DECLINED_OTHER_SOCKMAP,		/* another program has the socket on a sockmap of its own */
	DECLINED_NO_MEMORY,		/* no sk_storage */
	RETIRED_WINDOW,			/* unread bytes reached the window */
	RETIRED_MESSAGES,		/* too many unread messages, however small */
	RETIRED_SMALL_STREAM,		/* small messages one way, which TCP merges */
	RETIRED_LATE_PAIRING,		/* the first message came too early, or an early_sleeper() is there */
	RETIRED_HALF_CLOSED,		/* the peer will send no more: shutdown(2) */
	RETIRED_PEER_GONE,		/* the peer was taken off the sockhash by somebody else */
	RETIRED_OTHER_SOCKMAP,		/* an sk_skb program of somebody else reads at the peer */
	RETIRED_RCVLOWAT,		/* setsockopt(2) on an accelerated socket, these six */
	RETIRED_ZEROCOPY,
	RETIRED_OOBINLINE,
	RETIRED_REPAIR,
	RETIRED_OPTION,
	RETIRED_ULP,
	RETIRED_SPLICE,			/* seen by fentry, these six: splice(2) from the socket */
	RETIRED_WAITALL,		/* recv(2) with MSG_WAITALL */
	RETIRED_TRUNC,			/* recv(2) with MSG_TRUNC */
	RETIRED_OOB,			/* send(2) or recv(2) with MSG_OOB */
	RETIRED_WOKEN,			/* a blocking recv(2) was woken without data */
	RETIRED_FIONREAD,		/* ioctl(2) FIONREAD, on kernels where it does not count */
	RETIRED_DISABLE,
	COUNTERS
};

/* A process that uses a socket. */
struct owner {
	__u32 pid;		/* as the initial pid namespace counts */
	char comm[16];
};

/* What a direction had carried at a time; a rate is the difference of two. */
struct sample {
	__u64 time;		/* CLOCK_MONOTONIC, ns; 0: never taken */
	__u64 bytes;
	__u64 messages;
};

/* Where a direction, and the task that sends, were at a time; see small_stream(). */
struct stream {
	__u64 task;		/* kernel address */
	__u64 cpu_ns;		/* CPU time it has used */
	__u64 waits;		/* how often it has waited for something */
	__u64 messages;		/* sent */
	__u64 bytes;
	__u64 answers;		/* messages the peer has sent */
};

/* Per socket: this end, and the direction that starts here. */
struct sock_state {
	struct end self;
	struct end peer;
	__u64 peer_sk;			/* kernel address of the peer's struct sock, or 0 */
	__u64 peer_st;			/* that of the peer's sock_state */
	__u64 since;			/* CLOCK_MONOTONIC, ns */
	__u64 sent_bytes;		/* redirected, cumulative */
	__u64 sent_messages;
	__u64 drained_bytes;		/* sent_bytes when the peer's queue was last seen empty */
	__u32 budget_bytes;		/* until the peer's queue is looked at again */
	__u32 budget_messages;
	__u32 checkpoints;		/* taken so far */
	__u8 mode;			/* written by sk_msg only */
	__u8 reason;			/* enum counter: why mode is NATIVE */
	__u8 stop;			/* written by the iterator only */
	__u8 provisional;		/* somebody answered this client's address; see scope.h */
	__u64 barrier;			/* written by full_barrier() only */
	__u64 alerts;			/* of all sockets, when this direction last looked at its ends */
	struct stream stream;		/* since when this direction may be one */
	__u32 refused;			/* enum counter: why neither direction may redirect; by guards */
	__u32 reset_at;			/* when what a program asked for has gone wrong, or 0; see detect.c */
	struct flow flow;		/* as the client end sees it */
	struct place server;		/* known to the server end only */
	__u64 early;			/* of a client: who slept when it was established, or 0; see join() */
	__u64 checkpoint[16];		/* sent_bytes, MESSAGES_PER_SAMPLE messages apart */
	struct sample sample[2];	/* newer, older; taken by listings, as is all below */
	struct owner owner;		/* the first process met that has this socket open */
	__u32 owners;			/* processes that have */
	__u32 listing;			/* in which owner and owners were found */
	__u32 pad2;
};

/*
 * CLOCK_MONOTONIC in ns as of the last timer interrupt, up to 10 ms ago: 5 ns where bpf_ktime_get_ns()
 * may take 50. Never to be compared but as a signed difference with a time that may be exact.
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

#define BYTES_PER_SAMPLE 65536
#define MESSAGES_PER_SAMPLE 256		/* x 16 checkpoints: at most 4096 (+256) unread messages */

/* A single pair on its way off the sockhash; touched by the iterator only. */
struct leaving {
	__u32 created;		/* epoch of the first visit */
	__u32 stopped_in;	/* epoch in which the last end was stopped */
	__u8 stopped;		/* bit per side */
	__u8 reason;
	__u16 pad;
};

struct settings {
	__u32 stopped;		/* Disable: no message is redirected any more */
	__u32 stopped_in;	/* epoch of that */
	__u32 epoch;		/* grows by one after each RCU grace period the daemon waited for */
	__u32 window_bytes;
	__u32 trace;		/* someone subscribed to events */
	__u32 listing;		/* number of the listing under way; 0: walks retire instead */
	__u32 addresses;	/* enum addresses */
	__u32 excludes;		/* number of excluded cgroups */
	__u32 learn;		/* leave alone listeners that acceleration does no good */
	__u32 ktls;		/* the kernel has TCP_ULP "tls", as far as the daemon has seen */
	__u64 trial;		/* id of a cgroup left to a datapath that is being tried; 0: none */
	__u64 seed;		/* so that nobody knows which addresses share a place in `words` */
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
};

/* Why the connections of a listener are left alone. */
enum lesson_kind {
	LESSON_NONE,
	/* what a program there does: for good */
	LESSON_ULP,
	LESSON_RCVLOWAT,
	LESSON_ZEROCOPY,
	LESSON_OOBINLINE,
	LESSON_REPAIR,
	LESSON_OPTION,
	LESSON_SPLICE,
	LESSON_WAITALL,
	LESSON_TRUNC,
	LESSON_OOB,
	LESSON_WOKEN,
	LESSON_FIONREAD,
	/* acceleration does no good there: for as long as samples say so */
	LESSON_SPILLS,
	LESSON_SHORT,
	LESSON_EARLY_DATA,
};

/* What one direction carried. */
struct totals {
	__u64 bytes;		/* redirected */
	__u64 messages;
	__u64 tcp_bytes;	/* left to TCP: of a connection that was retired, or is about to be */
};

struct event {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	__u32 kind;
	__u32 reason;		/* enum counter; of EVENT_LEARNED, enum lesson_kind */
	struct totals totals[2];	/* by enum side: the direction that starts there */
	struct owner owner[2];	/* pid 0: not known */
	__u32 cpu;
	__u32 lost;		/* events this CPU could not report so far, for want of room */
	struct flow flow;
};

/* The process that called connect(), while somebody traces. */
struct caller {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	struct owner owner;
	__u32 pad;
};

/* A listening socket; addresses are left out, as a wildcard listener answers to any. */
struct listener {
	__u64 netns;
	__u32 port;
	__u32 pad;
};

/* What of a lesson each connection needs: whether it is left alone, or accelerated as a sample. */
struct sampling {
	__u64 time;		/* CLOCK_MONOTONIC, ns, of the lesson */
	__u64 sampled;		/* when a connection was last to be accelerated all the same */
	__u32 kind;		/* enum lesson_kind */
	__u32 skipped;		/* connections left alone since */
	__u32 samples;		/* that were to be accelerated; of the last one */
	__u32 met[2];		/* by enum side: as many as that have been established */
	__u32 settled;		/* no SYN older than the lesson is under way any more */
};

/* Why and since when the connections of a listener are left alone. */
struct lesson {
	struct sampling sampling;
	__u64 cgroup;		/* id, of the server end's */
	struct owner owner;	/* who did what was learned; pid 0 if that is no program's doing */
	__u32 pad;
};

/* What is learned of listeners on the ports that share a place. */
enum shortcut_state {
	NOTHING_LEARNED,
	LOOK_IT_UP,
	KNOWN,			/* of one listener, this */
};

struct shortcut {
	__u32 state;		/* enum shortcut_state */
	__u32 port;
	__u64 netns;
	struct sampling sampling;	/* in the place of its lesson's own */
};

/* The end of a traced connection that closed first. */
struct closing {
	struct totals totals;
	__u32 side;
	__u32 pad;
};

/* Why a connection was declined or retired, for whoever asks later. */
struct verdict {
	struct flow flow;
	__u32 reason;		/* enum counter */
	__u32 pad;
};

/* One line of the iterator's output. */
struct member {
	struct end self;
	__u32 mode;
	__u32 leaving;		/* or LEFT_UNREAD, or BROKEN */
	__u32 unread;		/* bytes in this socket's psock queue */
	__u64 since;
	__u64 sent_bytes;
	__u64 sent_messages;
	struct flow flow;
};

#define LEFT_UNREAD 2	/* the pair is off the sockhash, see nudge.c */
#define BROKEN 3	/* it is to be reset, see detect.c */

/* One end in a listing. */
struct view {
	__u64 bytes;
	__u64 messages;
	__u64 tcp_bytes;
	__u64 byte_rate;	/* per second, since a listing at least SAMPLE_NS ago */
	__u64 message_rate;
	__u64 inode;		/* of the socket; 0: closed by its programs */
	__u64 cgroup;		/* id */
	__u32 uid;
	__u32 unread;		/* bytes in this socket's psock queue */
	__u32 mode;		/* of the direction that starts here */
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
	__u64 age;		/* ns since the server end joined */
	struct view view[2];	/* by enum side */
	__u32 known;		/* bit per side: an end that closed cannot be looked at */
	__u32 leaving;
	struct pair pair;
	struct flow flow;	/* as the client end sees it */
	struct place server;	/* netns 0: not known */
};

#define COUNTER_SLOTS 64	/* a power of two, not less than COUNTERS */

struct counters {
	__u64 value[COUNTER_SLOTS];
};

/* The daemon's own notes (JSON): what these pins are, found again after a restart. */
struct manifest {
	char json[16384];
};

/* Made with room for max_connections (loader/records.py): what is compiled does for any limit. */
BPF_SOCKHASH(peers, struct end, 1);
BPF_SK_STORAGE(sockets, struct sock_state);
/* So is this, and for more, so that declined clients do not push out those of live pairs. */
BPF_TABLE("lru_hash", struct pair, struct handshake, handshakes, 1);
/*
 * Arrays, where a newer entry takes the place of an older one: connections pass here that will not be
 * accelerated, and a hash table would cost the most of it. An entry lost, or half overwritten, leaves
 * a connection on TCP; or, of `verdicts`, what `explain` is asked to what it finds out by itself.
 */
BPF_ARRAY(answered, struct answer, WORDS);
BPF_ARRAY(words, struct word, WORDS);
BPF_ARRAY(verdicts, struct verdict, VERDICTS);
BPF_ARRAY(unproven, struct unproven, UNPROVEN);
BPF_F_TABLE("hash", struct address, __u32, own_addresses, OWN_ADDRESSES, BPF_F_NO_PREALLOC);
/* Number of the directory that a step leads to, or EXCLUDED. */
BPF_F_TABLE("hash", struct step, __u32, excluded, EXCLUDED_STEPS, BPF_F_NO_PREALLOC);
/* LRU, as connections may close on their way out; one that is evicted starts again. */
BPF_TABLE("lru_hash", struct pair, struct leaving, leaving, LEAVING_PAIRS);
/* Ends that left with unread TCP data, of which their pollers may not know. */
BPF_TABLE("lru_hash", struct end, __u32, unnoticed, LEAVING_PAIRS);
BPF_ARRAY(settings, struct settings, 1);
BPF_ARRAY(ports, struct ports, 1);
/*
 * How often something happened to an accelerated socket that either direction has to know before its
 * next message: it was shut down or closed, or a guard refused it. Apart from what is written more
 * often.
 */
BPF_ARRAY(alerts, __u64, 1);
BPF_PERCPU_ARRAY(counters, struct counters, 1);
BPF_PERCPU_ARRAY(line, struct connection, 1);	/* of a listing, too long for the stack */
BPF_ARRAY(manifest, struct manifest, 1);
BPF_TABLE("lru_hash", struct flow, struct caller, callers, TRACED_CONNECTIONS);
BPF_TABLE("lru_hash", struct listener, struct owner, listeners, TRACED_CONNECTIONS);
BPF_TABLE("lru_hash", struct pair, struct closing, closing, TRACED_CONNECTIONS);
BPF_HASH(learned, struct listener, struct lesson, LESSONS);
/*
 * By port: connections to listeners of which nothing was learned, most of all, need no look-up, nor do
 * those to most of the others. A look-up takes as long as all else that is done for such a connection.
 */
BPF_ARRAY(shortcuts, struct shortcut, SHORTCUTS);
/* By listener: messages that acceleration saved, less those that pairing cost; see learn.c. */
BPF_TABLE("lru_hash", struct listener, __s32, balances, BALANCED_LISTENERS);
BPF_RINGBUF_OUTPUT(requests, 1);	/* wakes the daemon to walk; full means it is awake already */
BPF_RINGBUF_OUTPUT(events, 64);

#define MIX 0x9e3779b97f4a7c15ULL	/* 2^64 / golden ratio */

/* Its place in such an array, modulo the size of that; loader/records.py: hash_of(). */
inline_fn __u32 hash_of(const struct flow *flow)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	const __u64 *words = (const void *)flow;
	__u64 hash = s ? s->seed : 0;

	for (int i = 0; i < sizeof(*flow) / sizeof(*words); i++)
		hash = (hash ^ hash >> 32 ^ words[i]) * MIX;
	return hash >> 32;
}

inline_fn void read_place(struct place *place, const struct flow *flow)
{
	__builtin_memcpy(place->ip, flow->server_ip, 16);
	place->netns = flow->netns;
	place->port = flow->server_port;
	place->pad = 0;
}

inline_fn void count(enum counter which, __u64 n)
{
	int zero = 0;
	struct counters *c = counters.lookup(&zero);
	__u64 slot = which;

	/* keeps the mask, which the compiler may find needless and the verifier needs */
	asm volatile("" : "+r"(slot));
	slot &= COUNTER_SLOTS - 1;
	/* Atomic although per CPU: a task preempted between load and store would lose counts. */
	if (c)
		__sync_fetch_and_add(&c->value[slot], n);
}

/*
 * Kernel memory is read by address with bpf_probe_read_kernel: a stale address gives garbage or an
 * error, never a fault, and every caller treats both as "do not redirect" or "not yet".
 *
 * By a name of our own: BCC falls back to bpf_probe_read where it cannot find the symbol
 * bpf_probe_read_kernel in /proc/kallsyms (kptr_restrict), and these programs may not call that.
 */
static long (*read_kernel)(void *dst, __u32 size, const void *src) =
	(void *)BPF_FUNC_probe_read_kernel;

#define KERNEL_FIELD(dst, base, offset) \
	read_kernel(&(dst), sizeof(dst), (void *)((base) + (offset)))

/*
 * Of the program's own socket, through the pointer bpf_skc_to_tcp_sock() gives: an ordinary load,
 * where reading by address takes 50 ns. The verifier knows the struct and checks offset and size.
 */
#define OWN_FIELD(type, tp, offset) (*(type *)((void *)(tp) + (offset)))

/* Bit fields come as the byte that holds them and a mask. */
inline_fn __u8 kernel_bits(__u64 base, __u32 offset, __u8 mask)
{
	__u8 byte = 0;

	KERNEL_FIELD(byte, base, offset);
	return byte & mask;
}

/* The psock of a socket on a sockhash, or 0. */
inline_fn __u64 psock_of(__u64 sk)
{
	__u64 psock = 0, owner = 0;

	if (!sk || KERNEL_FIELD(psock, sk, OFF_sock_sk_user_data))
		return 0;
	psock &= ~7ULL;		/* SK_USER_DATA_* flags, include/linux/skmsg.h */
	if (!psock || KERNEL_FIELD(owner, psock, OFF_sk_psock_sk))
		return 0;
	return owner == sk ? psock : 0;
}

inline_fn int psock_queue_empty(__u64 psock)
{
	__u64 next = 0;

	if (KERNEL_FIELD(next, psock, OFF_sk_psock_ingress_msg))
		return 0;
	return next == psock + OFF_sk_psock_ingress_msg;
}
