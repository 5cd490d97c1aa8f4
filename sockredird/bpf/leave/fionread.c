/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * FIONREAD. On a member the kernel counts one of two queues: TCP's (tcp_ioctl()), or, since Linux
 * 6.6.128, 6.12.75 and 6.18.14, that of the psock (tcp_bpf_ioctl()). A program that
 * relies on the answer stops reading too early, or waits for ever.
 *
 * So an fexit program adds the other queue to the answer, in the int that the kernel has just
 * written for the program: leave/detect.c has nothing to see then, and no direction has to keep TCP's
 * data away from such a reader (peer_state.h: fionread_omits_tcp()). It needs ftrace,
 * CAP_SYS_ADMIN, and a kernel that is not locked down, as the helper writes to a program's memory.
 * Linux 6.1 says in the kernel's log that it is loaded, a few times over; 7.3 does not.
 */
#pragma once
#include "detect.c"

#define FIONREAD 0x541b
#define COUNTED_AT_A_TIME 64
#define COUNTED_TIMES 64 /* together more than a psock holds with the default window_bytes */

static long (*write_user)(void *dst, const void *src,
			  __u32 size) = (void *)BPF_FUNC_probe_write_user;

/* Unread bytes that came by TCP, as tcp_inq() counts them (include/net/tcp.h). */
inline_fn __u32 tcp_unread(__u64 sk)
{
	__u32 copied = kernel_copied_seq(sk), end = kernel_rcv_nxt(sk), mark = kernel_urg_seq(sk);

	if (kernel_urg_data(sk) && !(kernel_flags(sk) >> BIT_SOCK_URGINLINE & 1) &&
	    (__s32)(mark - copied) >= 0 && (__s32)(mark - end) < 0)
		return mark - copied;
	/* a FIN takes a sequence number; the flag is read last, as it is set last */
	return end - copied - (end != copied && kernel_flags(sk) >> BIT_SOCK_DONE & 1);
}

/*
 * Unread bytes in a psock's queue. -1 if a message was taken out of it meanwhile: another thread
 * reads, and what the kernel has said may be as good.
 */
inline_fn __s64 psock_unread(__u64 psock)
{
#ifdef PSOCK_COUNTS_BYTES
	return kernel_psock_msg_tot_len(psock);
#else
	__u64 head = psock_queue(psock), at = kernel_list_next(head);
	__s64 total = 0;

	/*
	 * The verifier compares each turn of a loop with all before it, so there are few of them,
	 * and it remembers 8,192 conditions, so there is one per message.
	 */
#pragma clang loop unroll(disable)
	for (int i = 0; i < COUNTED_TIMES && at; i++) {
#pragma unroll
		for (int j = 0; j < COUNTED_AT_A_TIME; j++) {
			if (at == head)
				return total;
			total += queued_bytes(at);
			at = kernel_list_next(at);
		}
	}
	return at ? total : -1;
#endif
}

/*
 * fexit of sk_ioctl(), or of tcp_ioctl() before there was that. Both queues are counted here, so that
 * it does no harm if another generation does the same.
 */
int sockredir_answered(unsigned long long *ctx)
{
	struct sock *sk = (void *)ctx[0];
	__s64 redirected, by_tcp;
	__u64 psock;
	__u32 total;

	if ((__u32)ctx[1] != FIONREAD || (__s32)ctx[3] || !sockets.sk_storage_get(sk, NULL, 0))
		return 0;
	psock = psock_of((__u64)sk);
	if (!psock)
		return 0;
	redirected = psock_unread(psock);
	by_tcp = tcp_unread((__u64)sk);
#ifdef FIONREAD_OMITS_TCP
	if (!by_tcp)
		return 0;
#else
	if (redirected <= 0)
		return 0;
#endif
	total = redirected + by_tcp;
	write_user((void *)ctx[2], &total, sizeof(total));
	return 0;
}

/* Where that cannot be: */
#ifndef ARGS_tcp_bpf_ioctl /* where it counts redirected data, a member has that function */
/*
 * A program that reads on edges may believe that nothing is left, and wait for the next edge
 * (nginx). Most only want to know how much to read, and poll first, so there is time to see.
 */
int sockredir_asking(unsigned long long *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if ((__u32)ctx[1] == FIONREAD && has_redirected((__u64)sk))
		harmed(sk, CAUSE_FIONREAD, IF_STUCK);
	return 0;
}
#endif
