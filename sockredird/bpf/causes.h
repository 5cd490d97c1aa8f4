/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Why a connection, or the connections of a listener, are not accelerated. One row per cause; all
 * else is read from here: counters, names and flags in Python (loader/records.py), and a test that
 * each has its sentence (datapath/causes.py) and its line in the manual.
 *
 * A new one is the last row: what an older version has pinned is adopted, and counts by its numbers.
 *
 * DECLINES   a connection is left on TCP as it is established
 * RETIRES    an accelerated connection is handed back to TCP
 * PAUSES     a direction sends by TCP until its reader has caught up
 * LISTENER   the listener's connections are left alone, for good: a program there does this
 * UNPROFITABLE the same, until enough connections to it are joined, as acceleration costs more than
 *            it saves
 */
#pragma once

#define DECLINES 1
#define RETIRES 2
#define LISTENER 4
#define UNPROFITABLE 8
#define PAUSES 16

/* clang-format off */
#define FOR_EACH_CAUSE(CAUSE)                                                                          \
	CAUSE(PEER_OUTSIDE, DECLINES)	/* the other end is not in scope */                            \
	CAUSE(UNDECIDABLE, DECLINES)	/* it is, but SNAT hid that until it was too late */           \
	CAUSE(EARLY_DATA, DECLINES | UNPROFITABLE) /* data went by TCP before the pair was complete */ \
	CAUSE(ULP, DECLINES | RETIRES | LISTENER)  /* kTLS, SMC or another upper layer protocol */     \
	CAUSE(MPTCP, DECLINES)                                                                         \
	CAUSE(ZEROCOPY, DECLINES | RETIRES | LISTENER)	/* SO_ZEROCOPY */                              \
	CAUSE(REPAIR, DECLINES | RETIRES | LISTENER)	/* TCP_REPAIR: sequence numbers are chosen */  \
	CAUSE(RCVLOWAT, DECLINES | RETIRES | LISTENER)	/* SO_RCVLOWAT above 1 */                      \
	CAUSE(OOBINLINE, DECLINES | RETIRES | LISTENER) /* SO_OOBINLINE */                             \
	CAUSE(OPTION, DECLINES | RETIRES | LISTENER)	/* SO_TIMESTAMP*, SO_LINGER, ... */      \
	CAUSE(LEARNED, DECLINES)	/* the listener is left alone, see learn/ */                   \
	CAUSE(KERNEL_SOCKET, DECLINES)                                                                 \
	CAUSE(MISMATCH, DECLINES)	/* numbers met, addresses did not; or their key is taken */    \
	CAUSE(MAP_FULL, DECLINES)	/* no room on the sockhash */                                  \
	CAUSE(OTHER_SOCKMAP, DECLINES | RETIRES) /* another program has the socket on its sockmap */   \
	CAUSE(NO_MEMORY, DECLINES)	/* no sk_storage */                                            \
	CAUSE(WINDOW, PAUSES)		/* unread bytes reached the window */                          \
	CAUSE(MESSAGES, PAUSES)	/* too many unread messages, however small */                  \
	CAUSE(MEMORY, PAUSES)		/* limits.memory_bytes are unread, of all connections */       \
	CAUSE(PRESSURE, DECLINES | RETIRES) /* tcp_mem, or the memory limit of either end's cgroup */    \
	CAUSE(PEER_BUSY, PAUSES) /* the peer held its lock for long: its recv() faults */    \
	CAUSE(REVALIDATION, PAUSES)	/* a message by TCP now and then, for firewalls and conntrack */ \
	CAUSE(BLOCKING_READER, RETIRES)	/* a program sleeps inside recv() */                           \
	CAUSE(HALF_CLOSED, RETIRES)	/* the peer will send no more: shutdown(2) */                  \
	CAUSE(PEER_GONE, RETIRES)	/* the peer was taken off the sockhash by somebody else */     \
	CAUSE(SPLICE, RETIRES | LISTENER)	/* seen by fentry: splice(2) from the socket */        \
	CAUSE(WAITALL, RETIRES | LISTENER)	/* recv(2) with MSG_WAITALL */                         \
	CAUSE(TRUNC, RETIRES | LISTENER)	/* recv(2) with MSG_TRUNC */                           \
	CAUSE(OOB, RETIRES | LISTENER)		/* send(2) or recv(2) with MSG_OOB */                  \
	CAUSE(WOKEN, RETIRES | LISTENER)	/* a blocking recv(2) was woken without data */        \
	CAUSE(FIONREAD, RETIRES | LISTENER)	/* ioctl(2) FIONREAD, where it does not count */       \
	CAUSE(SHORT_CONNECTIONS, UNPROFITABLE)	/* they end after a few messages */                    \
	CAUSE(DISABLE, RETIRES)		/* Disable, or another generation takes over */                \
	CAUSE(NEVER_QUIET, RETIRES)	/* joined, but its reader never caught up with TCP */                  \
	CAUSE(TCP_UNREAD, RETIRES)	/* FIONREAD does not tell of TCP's data, which stayed unread */        \
	CAUSE(IDLE, RETIRES)		/* it carried nothing, and the sockhash was nearly full */             \
	CAUSE(TCP_CALLS, UNPROFITABLE)	/* its program splices, and the like, before it reads */

/* clang-format on */

#define CAUSE_ENUMERATOR(name, flags) CAUSE_##name,

/* clang-format off */
enum cause {
	CAUSE_NONE,
	FOR_EACH_CAUSE(CAUSE_ENUMERATOR)
	CAUSES
};
/* clang-format on */

#define CAUSE_SLOTS 64 /* a power of two, not less than CAUSES */
#define IS_UNPROFITABLE(name, flags) ((flags) & UNPROFITABLE && cause == CAUSE_##name) ||

/* Whether a listener was learned until connections to it are joined, and not for good. */
inline_fn int is_unprofitable(__u32 cause)
{
	return FOR_EACH_CAUSE(IS_UNPROFITABLE) 0;
}
