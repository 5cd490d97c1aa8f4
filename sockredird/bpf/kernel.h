/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is read of the kernel's structs. This is the only file that knows where a field is: the loader
 * takes the offsets from the running kernel's BTF and passes them as -D OFF_<struct>_<field>
 * (loader/offsets.py lists the fields).
 *
 * own_<field>(tp)      of the program's own socket, through the pointer of bpf_skc_to_tcp_sock(). The
 *                      verifier knows the struct and checks offset and size; an ordinary load.
 * kernel_<field>(base) of any object, by its address. A stale address gives garbage, or 0 where the
 *                      memory cannot be read, and never a fault: every caller treats both as "do not
 *                      redirect" or "not yet".
 */
#pragma once
#include <linux/types.h>
#include <uapi/linux/bpf.h>

#define inline_fn static inline __attribute__((always_inline))
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile __typeof__(x) *)&(x) = (v))
/*
 * clang forgets what it knows of a number. It would make one condition or one shift of two, and the
 * verifier then misses a range that it saw in each: Linux 6.1 most of all.
 */
#define OPTIMIZER_HIDE_VAR(x) asm volatile("" : "+r"(x))

/*
 * Called by its number: BCC falls back to bpf_probe_read where it cannot find the symbol
 * bpf_probe_read_kernel in /proc/kallsyms (kptr_restrict), and these programs may not call that.
 */
static long (*read_kernel)(void *dst, __u32 size,
			   const void *src) = (void *)BPF_FUNC_probe_read_kernel;
static long (*read_kernel_str)(void *dst, __u32 size,
			       const void *src) = (void *)BPF_FUNC_probe_read_kernel_str;

/* 0 on success. `dst` keeps its value, or is zeroed, on a fault. */
#define KERNEL_FIELD(dst, base, offset) \
	read_kernel(&(dst), sizeof(dst), (void *)((base) + (offset)))

#define OWN(type, field, where)                             \
	inline_fn type own_##field(struct tcp_sock *tp)     \
	{                                                   \
		return *(type *)((void *)tp + OFF_##where); \
	}

/* Bit fields come as the byte that holds them and a mask. */
#define OWN_BIT(field, where)                                              \
	inline_fn int own_##field(struct tcp_sock *tp)                     \
	{                                                                  \
		return *(__u8 *)((void *)tp + OFF_##where) & MASK_##where; \
	}

/*
 * bpf_rdonly_cast() (Linux 6.2) makes an address a pointer of that type to the verifier, and the
 * read an ordinary load: 1 ns, where the helper takes 50. A load that faults gives 0 (exception
 * table). The loader makes the call of this number one of that kernel function (objects.py).
 */
#ifdef RDONLY_CAST
static void *(*rdonly_cast)(const void *object, __u32 btf_id) = (void *)RDONLY_CAST;

#define KERNEL(type, field, structure, member)                                  \
	inline_fn type kernel_##field(__u64 base)                               \
	{                                                                       \
		void *object = rdonly_cast((void *)base, ID_##structure);       \
                                                                                \
		return *(volatile type *)(object + OFF_##structure##_##member); \
	}
#else
#define KERNEL(type, field, structure, member)                         \
	inline_fn type kernel_##field(__u64 base)                      \
	{                                                              \
		type value = 0;                                        \
                                                                       \
		KERNEL_FIELD(value, base, OFF_##structure##_##member); \
		return value;                                          \
	}
#endif

/* struct sock and what it is the beginning of */
OWN(__u64, flags, sock_skc_flags)
OWN(__u64, ulp_ops, inet_connection_sock_icsk_ulp_ops)
OWN(__s32, rcvlowat, sock_sk_rcvlowat)
OWN(__u16, tsflags, sock_sk_tsflags)
OWN(__s32, peek_off, sock_sk_peek_off)
OWN(__u32, write_seq, tcp_sock_write_seq)
OWN(__u32, rcv_nxt, tcp_sock_rcv_nxt)
OWN(__u16, urg_data, tcp_sock_urg_data)
OWN(__u32, notsent_lowat, tcp_sock_notsent_lowat)
OWN(__u32, sndbuf, sock_sk_sndbuf)
OWN(__u64, lingertime, sock_sk_lingertime)
OWN(__u64, max_pacing_rate, sock_sk_max_pacing_rate)
OWN(__u64, filter, sock_sk_filter)
OWN(__u32, user_timeout, inet_connection_sock_icsk_user_timeout)
OWN(__u32, tx_delay, tcp_sock_tcp_tx_delay)
OWN_BIT(inq, tcp_sock_recvmsg_inq)
OWN_BIT(is_kernel_socket, sock_sk_kern_sock)
OWN_BIT(repair, tcp_sock_repair)
#ifdef OFF_tcp_sock_is_mptcp
OWN_BIT(is_mptcp, tcp_sock_is_mptcp)
#else
inline_fn int own_is_mptcp(struct tcp_sock *tp)
{
	return 0;
}
#endif
#ifdef OFF_tcp_sock_syn_smc
OWN_BIT(syn_smc, tcp_sock_syn_smc)
#else
inline_fn int own_syn_smc(struct tcp_sock *tp)
{
	return 0;
}
#endif
KERNEL(__s32, err, sock, sk_err)
KERNEL(__u8, shutdown, sock, sk_shutdown)
KERNEL(__u32, rcvbuf, sock, sk_rcvbuf)
KERNEL(__u32, sndbuf, sock, sk_sndbuf)
KERNEL(__u32, lock_owned, sock, owned)
KERNEL(__s32, write_pending, sock, sk_write_pending)
KERNEL(__u64, prot, sock, skc_prot)
KERNEL(__u64, net, sock, net)
KERNEL(__u16, family, sock, skc_family)
KERNEL(__u16, num, sock, skc_num)
KERNEL(__u16, dport, sock, skc_dport)
KERNEL(__u32, rcv_saddr, sock, skc_rcv_saddr)
KERNEL(__u32, daddr, sock, skc_daddr)
KERNEL(__s32, rcvlowat, sock, sk_rcvlowat)
KERNEL(__s64, rcvtimeo, sock, sk_rcvtimeo)
KERNEL(__u32, uid, sock, sk_uid)
KERNEL(__u16, protocol, sock, sk_protocol)
KERNEL(__u8, state, sock, skc_state)
KERNEL(__u32, refcnt, sock, skc_refcnt)
KERNEL(__u32, write_seq, tcp_sock, write_seq)
KERNEL(__u32, snd_una, tcp_sock, snd_una)
KERNEL(__u64, bytes_received, tcp_sock, bytes_received)
KERNEL(__u32, data_segs_out, tcp_sock, data_segs_out)
KERNEL(__u32, data_segs_in, tcp_sock, data_segs_in)
KERNEL(__u32, last_sent, tcp_sock, lsndtime)
KERNEL(__u32, copied_seq, tcp_sock, copied_seq)
KERNEL(__u32, rcv_nxt, tcp_sock, rcv_nxt)
KERNEL(__u16, urg_data, tcp_sock, urg_data)
KERNEL(__u32, urg_seq, tcp_sock, urg_seq)
KERNEL(__u64, flags, sock, skc_flags)
KERNEL(__u64, bytes_acked, tcp_sock, bytes_acked)
KERNEL(__u64, user_data, sock, sk_user_data)
KERNEL(__u64, wq, sock, sk_wq)
KERNEL(__u64, socket, sock, sk_socket)
KERNEL(__u64, receive_queue_next, sock, sk_receive_queue)

/*
 * FIONREAD on a member counts its psock queue only (tcp_bpf_ioctl(), Linux 6.6.128, 6.12.75,
 * 6.18.14 and later): a reader that asks it does not learn of what came by TCP, unless
 * leave/fionread.c puts that right.
 */
#ifdef ARGS_tcp_bpf_ioctl
#define FIONREAD_OMITS_TCP
#endif

/* struct sk_psock */
KERNEL(__u64, psock_sk, sk_psock, sk)
KERNEL(__u64, psock_ingress_next, sk_psock, ingress_msg)
KERNEL(__u32, psock_refcnt, sk_psock, refcnt)
KERNEL(__u64, psock_saved_data_ready, sk_psock, saved_data_ready)
#ifdef OFF_sk_psock_msg_tot_len
#define PSOCK_COUNTS_BYTES
KERNEL(__u32, psock_msg_tot_len, sk_psock, msg_tot_len)
#endif
KERNEL(__u32, msg_size, sk_msg, size) /* what is unread of it */

/* struct task_struct */
KERNEL(__u32, task_tgid, task_struct, tgid)
KERNEL(__u64, task_stack, task_struct, stack)
KERNEL(__u64, task_group_leader, task_struct, group_leader)

/* struct wait_queue_entry and the list it is on */
KERNEL(__u64, wait_private, wait_queue_entry, private)
KERNEL(__u64, list_next, list_head, next)

inline_fn int kernel_has_bit_flag(struct tcp_sock *tp, int bit)
{
	return (own_flags(tp) >> bit) & 1;
}

/* TCP_REPAIR is on: the program chooses sequence numbers. */
inline_fn int kernel_repairs(__u64 sk)
{
	__u8 byte = 0;

	KERNEL_FIELD(byte, sk, OFF_tcp_sock_repair);
	return byte & MASK_tcp_sock_repair;
}

#define own_has_flag(tp, name) kernel_has_bit_flag(tp, BIT_##name)

/* struct sock of a struct socket that the verifier knows; NULL while there is none. */
inline_fn struct sock *sock_of(struct socket *socket)
{
	return *(struct sock **)((void *)socket + OFF_socket_sk);
}

/* Flags of the struct msghdr that a tracing program was called with. */
inline_fn __u32 msghdr_flags(void *msg)
{
	return *(__u32 *)(msg + OFF_msghdr_msg_flags);
}

#define SOCK_SNDBUF_LOCK 1 /* include/net/sock.h: the program itself has set SO_SNDBUF */
#define SOCK_RCVBUF_LOCK 2 /* SO_RCVBUF */

/* Which buffer sizes the program has set: SOCK_*_LOCK. */
inline_fn __u8 buffer_locks(__u64 sk)
{
	__u8 byte = 0;

	KERNEL_FIELD(byte, sk, OFF_sock_sk_userlocks);
	return (byte & MASK_sock_sk_userlocks) >> SHIFT_sock_sk_userlocks;
}

#define O_NONBLOCK 04000

/* Flags of the socket's open file, fcntl(2); 0 before accept(). */
inline_fn __u32 file_flags(__u64 sk)
{
	__u64 socket = kernel_socket(sk), file = 0;
	__u32 flags = 0;

	if (socket)
		KERNEL_FIELD(file, socket, OFF_socket_file);
	if (file)
		KERNEL_FIELD(flags, file, OFF_file_f_flags);
	return flags;
}

/* What is at an address that a struct of the kernel holds. */
inline_fn __u64 kernel_word(__u64 at)
{
	return at ? kernel_list_next(at - OFF_list_head_next) : 0;
}

KERNEL(__u64, memory_pressure_at, proto, memory_pressure)

/* TCP as a whole is under memory pressure: beyond tcp_mem[1], tcp(7). */
inline_fn int tcp_under_pressure(__u64 sk)
{
	return kernel_word(kernel_memory_pressure_at(kernel_prot(sk))) != 0;
}

#define UNLIMITED 0x1000000000000ULL /* pages; PAGE_COUNTER_MAX is about 2^51 */

/* The struct page_counter with the lowest limit from a cgroup to the root. */
struct tightest {
	__u64 counter; /* kernel address; 0: there is no limit */
	__u64 max;     /* pages */
};

enum room { ROOM_NONE, ROOM_LITTLE, ROOM_PLENTY };

#ifdef OFF_sock_sk_memcg
KERNEL(__u64, memcg, sock, sk_memcg)
KERNEL(__u64, counter_usage, page_counter, usage)
KERNEL(__u64, counter_max, page_counter, max)
KERNEL(__u64, counter_parent, page_counter, parent)
#define COUNTER_LEVELS 8 /* cgroups above that of the socket that are looked at */

inline_fn struct tightest tightest_of(__u64 counter)
{
	struct tightest found = { .max = UNLIMITED };

#pragma clang loop unroll(disable)
	for (int i = 0; i < COUNTER_LEVELS && counter; i++) {
		__u64 max = kernel_counter_max(counter);

		if (max < found.max) {
			found.max = max;
			found.counter = counter;
		}
		counter = kernel_counter_parent(counter);
	}
	return found;
}

/* The memory limit that what is queued at a socket counts for. */
inline_fn struct tightest memory_limit_of(__u64 sk)
{
	struct tightest none = { .max = UNLIMITED };
	__u64 memcg = kernel_memcg(sk);

	return memcg ? tightest_of(memcg + OFF_mem_cgroup_memory) : none;
}

#if defined(OFF_mem_cgroup_nodeinfo) && defined(NR_LRU_INACTIVE_FILE)
#define GENERATIONS 4 /* MAX_NR_GENS of mmzone.h; of each there is one of anonymous pages first */

/* Pages of files in the lists of the multi-generational LRU, which is not always on. */
inline_fn __u64 pages_in_generations(__u64 node)
{
	__u64 total = 0;
#ifdef OFF_mem_cgroup_per_node_nr_pages
#pragma clang loop unroll(disable)
	for (int i = 0; i < GENERATIONS * NR_MAX_NR_ZONES; i++) {
		int generation = i / NR_MAX_NR_ZONES, zone = i % NR_MAX_NR_ZONES;
		int at = (2 * generation + 1) * NR_MAX_NR_ZONES + zone;
		__u64 pages = 0;

		KERNEL_FIELD(pages, node, OFF_mem_cgroup_per_node_nr_pages + 8 * at);
		total += pages;
	}
#endif
	return total;
}

/*
 * Pages of page cache that a cgroup has itself, without the cgroups below it, on the first node: they
 * give way when other memory is charged.
 */
inline_fn __u64 page_cache_of(__u64 memcg)
{
	struct {
		__u64 inactive;
		__u64 active; /* the list after it, in enum lru_list */
	} file;
	__u64 node = 0, pages;

	KERNEL_FIELD(node, memcg, OFF_mem_cgroup_nodeinfo);
	if (!node)
		return 0;
	pages = pages_in_generations(node);
#pragma clang loop unroll(disable)
	for (int zone = 0; zone < NR_MAX_NR_ZONES; zone++) {
		int first = zone * NR_NR_LRU_LISTS + NR_LRU_INACTIVE_FILE;

		file.inactive = file.active = 0;
		KERNEL_FIELD(file, node, OFF_mem_cgroup_per_node_lru_zone_size + 8 * first);
		pages += file.inactive + file.active;
	}
	return pages;
}
#else
inline_fn __u64 page_cache_of(__u64 memcg)
{
	return 0;
}
#endif

#define RESERVE_LEAST 256 /* pages: charges come in batches of 64 for each processor */
#define RESERVE_MOST 4096

/*
 * What is left below a memory limit. Plenty is so much that TCP does not take it within a jiffy; half of
 * the page cache counts as well, which TCP's charges do not reclaim, and a redirect's do.
 */
inline_fn enum room room_below(__u64 counter, __u64 max)
{
	__u64 usage, left, reserve = max / 16;

	if (reserve < RESERVE_LEAST)
		reserve = RESERVE_LEAST;
	if (reserve > RESERVE_MOST)
		reserve = RESERVE_MOST;
	usage = kernel_counter_usage(counter);
	left = usage < max ? max - usage : 0;
	if (left >= 4 * reserve)
		return ROOM_PLENTY;
	if (page_cache_of(counter - OFF_mem_cgroup_memory) >= 8 * reserve)
		return ROOM_PLENTY;
	return left >= reserve ? ROOM_LITTLE : ROOM_NONE;
}

/* The same of all limits that what is queued at a socket counts for. */
inline_fn enum room room_for(__u64 sk)
{
	__u64 memcg = kernel_memcg(sk), counter = memcg ? memcg + OFF_mem_cgroup_memory : 0;
	enum room least = ROOM_PLENTY;

#pragma clang loop unroll(disable)
	for (int i = 0; i < COUNTER_LEVELS && counter; i++) {
		__u64 max = kernel_counter_max(counter);
		enum room room = max < UNLIMITED ? room_below(counter, max) : ROOM_PLENTY;

		if (room < least)
			least = room;
		counter = kernel_counter_parent(counter);
	}
	return least;
}

/*
 * Whether the limit of a cgroup for TCP's memory alone (cgroup v1: memory.kmem.tcp.limit_in_bytes)
 * is near. The other one says little: page cache fills it, and gives way.
 */
inline_fn int near_socket_limit(__u64 sk)
{
#ifdef OFF_mem_cgroup_tcpmem
	__u64 memcg = kernel_memcg(sk);
	struct tightest limit = { .max = UNLIMITED };

	if (memcg)
		limit = tightest_of(memcg + OFF_mem_cgroup_tcpmem);
	return limit.counter && kernel_counter_usage(limit.counter) > limit.max / 4 * 3;
#else
	return 0;
#endif
}
#else
inline_fn struct tightest memory_limit_of(__u64 sk)
{
	struct tightest none = { .max = UNLIMITED };

	return none;
}

inline_fn enum room room_for(__u64 sk)
{
	return ROOM_PLENTY;
}

inline_fn int near_socket_limit(__u64 sk)
{
	return 0;
}
#endif

/*
 * Whether memory for this socket is short, or soon will be. Beyond the limit a member's send()
 * waits for memory before any program is asked (sk_msg_alloc()), where TCP has one buffer in any
 * case: so members leave before that.
 */
inline_fn int memory_is_short(__u64 sk)
{
	return tcp_under_pressure(sk) || near_socket_limit(sk);
}

#ifdef OFF_net_timeouts
#define TCP_CONNTRACK_ESTABLISHED 3 /* nf_conntrack_tcp.h */
/* After how many jiffies without a packet conntrack forgets an established connection; 0: never. */
inline_fn __u32 conntrack_timeout(__u64 sk)
{
	__u64 net = kernel_net(sk);
	__u32 jiffies = 0;

	if (net)
		KERNEL_FIELD(jiffies, net, OFF_net_timeouts + 4 * TCP_CONNTRACK_ESTABLISHED);
	return jiffies;
}
#else
inline_fn __u32 conntrack_timeout(__u64 sk)
{
	return 0;
}
#endif

/* Number of the socket's inode, as in /proc/PID/fd; 0 once its programs have closed it. */
inline_fn __u64 inode_of(__u64 sk)
{
	__u64 socket = kernel_socket(sk), inode = 0;

	if (socket)
		KERNEL_FIELD(inode, socket, OFF_socket_alloc_vfs_inode + OFF_inode_i_ino);
	return inode;
}

/* Address of the socket's struct cgroup. */
inline_fn __u64 cgroup_address_of(__u64 sk)
{
	__u64 cgroup = 0;

	KERNEL_FIELD(cgroup, sk, OFF_sock_sk_cgrp_data + OFF_sock_cgroup_data_cgroup);
	return cgroup;
}

/* Id of the socket's cgroup; 0 on a fault. */
inline_fn __u64 cgroup_of(__u64 sk)
{
	__u64 cgroup = cgroup_address_of(sk), node = 0, id = 0;

	if (cgroup)
		KERNEL_FIELD(node, cgroup, OFF_cgroup_kn);
	if (node)
		KERNEL_FIELD(id, node, OFF_kernfs_node_id);
	return id;
}

#ifdef OFF_cgroup_ancestors
#define CGROUP_NAMES
/* How deep a cgroup is below the root; -1 on a fault. */
inline_fn __s32 cgroup_level(__u64 cgroup)
{
	__s32 level = 0;

	return !cgroup || KERNEL_FIELD(level, cgroup, OFF_cgroup_level) ? -1 : level;
}

/* Id of the ancestor at a level below the root; 0 on a fault. */
inline_fn __u64 ancestor_id(__u64 cgroup, __u32 level)
{
	__u64 ancestor = 0, node = 0, id = 0;

	if (!KERNEL_FIELD(ancestor, cgroup + OFF_cgroup_ancestors + 8 * level, 0) &&
	    !KERNEL_FIELD(node, ancestor, OFF_cgroup_kn))
		KERNEL_FIELD(id, node, OFF_kernfs_node_id);
	return id;
}

/* Reads the name of the ancestor at a level below the root; not 0 on a fault. */
inline_fn int read_ancestor_name(char *name, __u32 size, __u64 cgroup, __u32 level)
{
	__u64 at = cgroup + OFF_cgroup_ancestors + 8 * level;
	__u64 ancestor = 0, node = 0, text = 0;

	return KERNEL_FIELD(ancestor, at, 0) || KERNEL_FIELD(node, ancestor, OFF_cgroup_kn) ||
	       KERNEL_FIELD(text, node, OFF_kernfs_node_name) ||
	       read_kernel_str(name, size, (void *)text) < 0;
}
#endif

/* Cookie of the socket's network namespace, as bpf_get_netns_cookie() gives it. */
inline_fn __u64 netns_cookie_of(__u64 sk)
{
	__u64 net = kernel_net(sk), cookie = 0;

	if (net)
		KERNEL_FIELD(cookie, net, OFF_net_net_cookie);
	return cookie;
}

/* The addresses of an IPv6 socket, 16 bytes each. */
inline_fn void read_ip6(__u32 *local, __u32 *remote, __u64 sk)
{
	read_kernel(local, 16, (void *)(sk + OFF_sock_skc_v6_rcv_saddr));
	read_kernel(remote, 16, (void *)(sk + OFF_sock_skc_v6_daddr));
}

/* When data last came in, in jiffies modulo 2^32. */
inline_fn __u32 last_received(__u64 sk)
{
	__u32 when = 0;

	KERNEL_FIELD(when, sk, OFF_inet_connection_sock_lrcvtime);
	return when;
}

/* The psock of a socket on a sockhash, or 0. */
inline_fn __u64 psock_of(__u64 sk)
{
	__u64 psock;

	if (!sk)
		return 0;
	psock = kernel_user_data(sk) & ~7ULL; /* SK_USER_DATA_* flags, include/linux/skmsg.h */
	return psock && kernel_psock_sk(psock) == sk ? psock : 0;
}

/* The head of a psock's list of redirected messages. */
inline_fn __u64 psock_queue(__u64 psock)
{
	return psock + OFF_sk_psock_ingress_msg;
}

inline_fn int psock_queue_empty(__u64 psock)
{
	return kernel_psock_ingress_next(psock) == psock_queue(psock);
}

/* Unread bytes of the message that this entry of a psock's queue is in. */
inline_fn __u32 queued_bytes(__u64 entry)
{
	return kernel_msg_size(entry - OFF_sk_msg_list);
}

/* Whether something that was redirected is unread. */
inline_fn int has_redirected(__u64 sk)
{
	__u64 psock = psock_of(sk);

	return psock && !psock_queue_empty(psock);
}

/* Whether something that came through TCP is unread. */
inline_fn int has_tcp_data(__u64 sk)
{
	__u64 next = sk ? kernel_receive_queue_next(sk) : 0;

	return next && next != sk + OFF_sock_sk_receive_queue;
}

/* Head of the socket's wait queue: in struct socket_wq, and 0 before accept(). */
inline_fn __u64 wait_queue_of(__u64 sk)
{
	__u64 wq = kernel_wq(sk);

	return wq ? wq + OFF_socket_wq_head : 0;
}

/* The entry on a wait queue that `list` is part of, and the list part of an entry. */
inline_fn __u64 wait_entry(__u64 list)
{
	return list - OFF_wait_queue_entry_entry;
}

/*
 * References to a socket that are not a redirect in flight: the socket itself, its psock, and one
 * per armed timer (sk_reset_timer()). Kernels differ in their timers, so the loader lists them.
 * Other references that come and go only make us wait longer.
 */
inline_fn __u32 timer_pending(__u64 sk, __u32 offset)
{
	__u64 pprev = 0;

	KERNEL_FIELD(pprev, sk, offset + OFF_timer_list_pprev);
	return pprev != 0;
}

inline_fn __u32 known_references(__u64 sk)
{
	return 2 + EACH_TIMER(timer_pending, sk);
}

/* Names a task, by the address of its struct task_struct. */
#define read_comm(comm, task) KERNEL_FIELD(comm, task, OFF_task_struct_comm)
