/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * An IP-set context: the sockets of one cgroup, confined to an ordered set of addresses in a network namespace that
 * they share with everybody else.
 *
 * Two kinds of programs. Those of sections "cgroup/…" are loaded for each context and attached to its cgroup; the
 * kernel runs them for sockets that were made in it, wherever such a socket goes. "floor/…" is loaded once for a
 * network namespace and brings what arrives to wildcard sockets of contexts.
 *
 *   bind          the address must be of the set. `*` becomes the first address of the set, and the socket is noted as
 *                 wild; 127.0.0.n becomes the context's own 127.x.y.n, ::1 its own address on lo.
 *   post_bind     the kernel has the port; now the books must have it, for each address that the socket answers on.
 *                 One that is taken fails the bind as a whole.
 *   sock_release  gives back what the books have.
 *   listen        a wild TCP listener is put where the floor finds it.
 *   floor         a SYN or a datagram to an address that the books give to a wild socket is brought to that socket.
 *   connect, sendmsg      choose a source of the set, unless the socket has one.
 *   recvmsg, getsockname, getpeername     tell the program the names that it expects.
 *   skb           the last line: no packet leaves with, or arrives for, an address that is not of the set.
 *
 * The books are one hash for all contexts of a namespace. An entry counts the sockets that share it (SO_REUSEPORT). It
 * is entered by BPF_NOEXIST, counted up by compare-and-swap, never up from nothing, and deleted by who counts it down
 * to nothing. The upper 48 bits of the word hold a stamp that no two entries have, because the kernel gives the memory
 * of a deleted entry to the next one at once: a swap must not succeed on what was found under another key. A stamp is
 * the cookie of the socket that tries to make the entry and the number of that try; a clock would take longer.
 *
 * Only the kernel's own header is included, and every function is inlined: the loader needs to know maps, nothing else.
 */
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define wire16(x) ((__u16)__builtin_bswap16(x)) /* to the order of the wire, and back */
#define wire32(x) ((__u32)__builtin_bswap32(x))
#else
#define wire16(x) ((__u16)(x))
#define wire32(x) ((__u32)(x))
#endif
#define barrier_var(x) asm volatile("" : "+r"(x))

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const map_update)(void *map, const void *key, const void *value, __u64 flags) =
    (void *)BPF_FUNC_map_update_elem;
static long (*const map_delete)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u64 (*const socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;
static long (*const set_retval)(int value) = (void *)BPF_FUNC_set_retval;
static __u64 (*const netns_cookie)(void *ctx) = (void *)BPF_FUNC_get_netns_cookie;
static void *(*const storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)BPF_FUNC_sk_storage_get;
static long (*const sock_bind)(struct bpf_sock_addr *ctx, void *address, int size) = (void *)BPF_FUNC_bind;
static long (*const getsockopt)(void *ctx, int level, int name, char *value, int size) = (void *)BPF_FUNC_getsockopt;
static long (*const sock_hash_update)(struct bpf_sock_ops *ops, void *map, void *key, __u64 flags) =
    (void *)BPF_FUNC_sock_hash_update;
static long (*const load_bytes)(const void *skb, __u32 offset, void *to, __u32 size) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const load_relative)(const void *skb, __u32 offset, void *to, __u32 size, __u32 from) =
    (void *)BPF_FUNC_skb_load_bytes_relative;
static long (*const sk_assign)(void *ctx, void *sk, __u64 flags) = (void *)BPF_FUNC_sk_assign;
static long (*const sk_release)(void *sk) = (void *)BPF_FUNC_sk_release;
static struct bpf_sock *(*const full_sock)(struct bpf_sock *sk) = (void *)BPF_FUNC_sk_fullsock;
static struct bpf_sock *(*const lookup_tcp)(void *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns,
                                            __u64 flags) = (void *)BPF_FUNC_sk_lookup_tcp;
static struct bpf_sock *(*const lookup_udp)(void *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns,
                                            __u64 flags) = (void *)BPF_FUNC_sk_lookup_udp;

/* -- what the loader fills in ------------------------------------------------------------------------------------- */

#define MOST 18 /* addresses of a set, the context's own loopback addresses included */
#define RANGES 4
#define READERS 32 /* how many listeners of one SO_REUSEPORT group the floor knows */

struct address {
    __u32 word[4]; /* in the order of the wire; IPv4 as ::ffff:a.b.c.d */
};

/* Ports low … low + span, of TCP (1), UDP (2) or both. Every port is a range as well; an unused one has no protocol. */
struct range {
    __u16 low, span;
    __u16 protocols;
};

struct member {
    __u16 loopback;
    struct range range[RANGES];
};

struct entry {
    struct address address, mask;
    __u16 kind; /* WILD4 or WILD6 */
    struct member member;
};

struct config {
    __u64 netns; /* its cookie: sockets of another one are refused */
    __u32 id;
    __u32 flags;
    __u32 low, span; /* the ephemeral ports */
    __u32 count;
    __u32 has6;      /* whether there is a first6 */
    __u32 first4;    /* of the set; 0: there is none */
    __u32 loopback4; /* the context's own 127.0.0.1 */
    struct address first6, loopback6;
    struct entry entry[MOST];
};

#define V6ONLY_DEFAULT 1 /* net.ipv6.bindv6only */
#define RESTORING 2      /* sockets are being restored: connections are bound beside each other, as they were accepted */

struct key {
    struct address address;
    __u16 port;
    __u8 protocol;
    __u8 slot; /* of listeners; 0 in the books */
};

struct claim {
    __u64 count; /* stamp << 16 | how many sockets */
    __u32 id;
    __u32 flags;
    struct address primary;
};

struct state {
    __u32 flags;
    __u32 entered; /* how far the books were */
    __u32 port;    /* that the books have: the kernel may take a port away that it chose itself */
    __u32 tries;   /* how many entries it has tried to make */
    struct address primary; /* what a socket is bound to, as the kernel has it */
};

/* flags of a claim and of a socket's state */
#define WILD4 0x01
#define WILD6 0x02
#define WILD (WILD4 | WILD6)
#define SHARE_PORT 0x04
#define SHARE_ADDRESS 0x08
#define V6ONLY 0x10
#define V6BOTH 0x20
#define PKTINFO 0x40
#define CHOSEN 0x80 /* the source was chosen by us */
#define BOOKED 0x100
#define OF_BIND (WILD | SHARE_PORT | SHARE_ADDRESS | BOOKED)
#define EPHEMERAL 0x200 /* bound to port 0 */
#define REPAIRED 0x400  /* a connection that is being restored */
#define CONNECTED 0x800 /* of TCP: it has an address from then on, also when the connection has ended */
#define AT_BIND 10      /* so much higher are what SHARE_PORT and SHARE_ADDRESS will be when it is bound */

struct map {
    __u32 type, key_size, value_size, max_entries, flags;
};

struct map SEC("maps") config = {BPF_MAP_TYPE_HASH, 4, sizeof(struct config), 1, 0};
/* Of two sets, for the moment of a change. */
struct map SEC("maps") members = {BPF_MAP_TYPE_HASH, sizeof(struct address), sizeof(struct member), 2 * MOST, 0};
struct map SEC("maps") sockets = {BPF_MAP_TYPE_SK_STORAGE, 4, sizeof(struct state), 0, BPF_F_NO_PREALLOC};
/*
 * Of the floor. Half as large the books make a bind a tenth faster, for most of it is to reach what is not cached; and a
 * socket on `*` has an entry for each address. With their memory taken beforehand, some of a hundred million racing
 * binds left an entry behind (Linux 6.18), and without none did.
 */
struct map SEC("maps") books = {BPF_MAP_TYPE_HASH, sizeof(struct key), sizeof(struct claim), 1 << 16,
                                BPF_F_NO_PREALLOC};
struct map SEC("maps") listeners = {BPF_MAP_TYPE_SOCKHASH, sizeof(struct key), 8, 1 << 14, 0};

char its_license[] SEC("license") = "Dual MIT/GPL";
char its_source[] SEC("source") = SOURCE_DIGEST;
char its_compiler[] SEC("compiler") = __VERSION__;

#define EPERM 1
#define EINVAL 22
#define EADDRINUSE 98
#define EADDRNOTAVAIL 99
#define ENETUNREACH 101
#define EPROTONOSUPPORT 93
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define MAPPED wire32(0xffff)
#define MARK 0xc3000000 /* of packets to a context's own loopback address; the lower bits are its number */

/* -- addresses ---------------------------------------------------------------------------------------------------- */

INLINE void of_v4(struct address *to, __u32 v4) {
    to->word[0] = 0;
    to->word[1] = 0;
    to->word[2] = MAPPED;
    to->word[3] = v4;
}

INLINE int is_mapped(const struct address *a) { return !a->word[0] && !a->word[1] && a->word[2] == MAPPED; }

INLINE int is_equal(const struct address *a, const struct address *b) {
    return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

INLINE int is_any6(const struct address *a) { return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]); }

INLINE int is_loopback6(const struct address *a) {
    return !(a->word[0] | a->word[1] | a->word[2]) && a->word[3] == wire32(1);
}

/* An IPv4 address is a word in the order of the wire. */
INLINE __u32 first_three(__u32 v4) { return v4 & wire32(0xffffff00); }
INLINE __u32 last_byte(__u32 v4) { return v4 & wire32(0xff); }
INLINE int is_127(__u32 v4) { return (v4 & wire32(0xff000000)) == wire32(127 << 24); }
INLINE int is_127_0_0(__u32 v4) { return first_three(v4) == wire32(127 << 24); }

INLINE struct config *the_config(void) {
    __u32 zero = 0;
    return map_lookup(&config, &zero);
}

/* 127.0.0.n → 127.x.y.n */
INLINE __u32 inwards4(const struct config *c, __u32 v4) {
    return is_127_0_0(v4) ? first_three(c->loopback4) | last_byte(v4) : v4;
}

INLINE int is_own_127(const struct config *c, __u32 v4) { return first_three(v4) == first_three(c->loopback4); }

/* 127.x.y.n → 127.0.0.n */
INLINE __u32 outwards4(const struct config *c, __u32 v4) {
    return is_own_127(c, v4) ? wire32(127 << 24) | last_byte(v4) : v4;
}

/* Whether a port is in a range. Without branches: each would double what the verifier has to follow. */
INLINE __u32 is_in(__u32 port, __u32 low, __u32 span) { return 1 - (((__u64)span - (__u16)(port - low)) >> 63); }

INLINE __u32 is_allowed(const struct member *m, __u8 protocol, __u32 port) {
    __u32 shift = protocol >> 4 & 1, found = 0; /* TCP is 6, UDP 17 */
#pragma clang loop unroll(full)
    for (int i = 0; i < RANGES; i++)
        found |= m->range[i].protocols >> shift & is_in(port, m->range[i].low, m->range[i].span);
    return found & 1;
}

/* The member of the set that `a` is; every 127.x.y.n counts as the context's loopback address. */
INLINE struct member *member_of(const struct address *a) {
    struct address key = *a;
    if (is_mapped(&key) && is_127(key.word[3]))
        key.word[3] = first_three(key.word[3]) | wire32(1);
    return map_lookup(&members, &key);
}

/* Port 0 is one of the kernel's choice, from the ephemeral ports, which every address has. */
INLINE int may_bind(const struct address *a, __u8 protocol, __u32 port) {
    struct member *m = member_of(a);
    return m && (!port || is_allowed(m, protocol, port));
}

INLINE int may_pass(const struct config *c, const struct member *m, __u8 protocol, __u32 port) {
    if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
        return 1;
    return is_allowed(m, protocol, port) | is_in(port, c->low, c->span);
}

INLINE int refuse(int error) {
    set_retval(-error);
    return 0;
}

/* -- the books ---------------------------------------------------------------------------------------------------- */

#define TRIES 3 /* when others change the entry at the same moment */

/* Enter a socket; 0, or the error with which its bind fails. */
INLINE int claim(const struct key *key, struct claim *wanted, struct state *s, __u64 cookie) {
#pragma clang loop unroll(disable)
    for (int i = 0; i < TRIES; i++) {
        struct claim *found;
        __u64 seen;
        wanted->count = cookie << 32 | (__u64)(__u16)s->tries++ << 16 | 1;
        if (!map_update(&books, key, wanted, BPF_NOEXIST))
            return 0;
        found = map_lookup(&books, key);
        if (!found)
            continue;
        seen = *(volatile __u64 *)&found->count;
        if (!(seen & 0xffff))
            continue; /* its last socket is about to delete it */
        if (found->id != wanted->id || (found->flags ^ wanted->flags) & WILD ||
            !(found->flags & wanted->flags & (SHARE_PORT | SHARE_ADDRESS)) ||
            !is_equal(&found->primary, &wanted->primary))
            return EADDRINUSE;
        if (__sync_val_compare_and_swap(&found->count, seen, seen + 1) == seen)
            return 0;
    }
    return EADDRINUSE;
}

INLINE void give_back(const struct key *key, __u32 id) {
    struct claim *found = map_lookup(&books, key);
    if (!found || found->id != id)
        return;
    if ((__sync_fetch_and_add(&found->count, -1ULL) & 0xffff) == 1)
        map_delete(&books, key);
}

/* The n-th address of the set, if a wild socket of these flags and this port answers on it. */
INLINE int is_nth(const struct config *c, __u32 flags, __u32 n, struct key *key) {
    const struct entry *e;
    if (n >= MOST)
        return 0;
    e = &c->entry[n];
    key->address = e->address;
    /* not every address of the set has every port */
    return flags & e->kind && (flags & EPHEMERAL || is_allowed(&e->member, key->protocol, key->port));
}

INLINE void give_back_all(const struct config *c, const struct state *s, struct key *key, __u32 count) {
#pragma clang loop unroll(disable)
    for (__u32 next = 0; next < MOST;) {
        /* Counted first: older verifiers (Linux 6.1) want the way back to be a jump. */
        __u32 n = next++;
        if (n >= count)
            break;
        if (is_nth(c, s->flags, n, key))
            give_back(key, c->id);
    }
}

/* -- bind --------------------------------------------------------------------------------------------------------- */

INLINE struct state *state_of(void *sk) { return storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE); }

/* Noted when the options were set: to ask the kernel for them takes a third of the time of the program. */
INLINE __u32 share_flags(const struct config *c, struct bpf_sock_addr *ctx, const struct state *s) {
    __u32 flags = s->flags >> AT_BIND & (SHARE_PORT | SHARE_ADDRESS);
    int value = 0;
    /* SK_FORCE_REUSE, which TCP_REPAIR sets and nothing else (net/ipv4/tcp.c): who accepts a connection books nothing. */
    if (c->flags & RESTORING &&
        !getsockopt(ctx, 1 /* SOL_SOCKET */, 2 /* SO_REUSEADDR */, (char *)&value, sizeof(value)) && value == 2)
        flags |= SHARE_ADDRESS | REPAIRED;
    return flags;
}

/* What `*` becomes: the first address of a family on which the port is allowed; the loopback address always is. */
INLINE int first_of(const struct config *c, __u32 kind, __u8 protocol, __u32 port, struct address *to) {
#pragma clang loop unroll(disable)
    for (__u32 n = 0; n < MOST; n++) {
        const struct entry *e = &c->entry[n];
        if (n >= c->count)
            break;
        if (e->kind == kind && (!port || is_allowed(&e->member, protocol, port))) {
            *to = e->address;
            return 1;
        }
    }
    return 0;
}

/* 0 where the kernel has the choice, or had it of a socket that is restored. */
INLINE __u32 asked_port(const struct config *c, const struct bpf_sock_addr *ctx) {
    __u32 port = wire16(ctx->user_port);
    return c->flags & RESTORING && is_in(port, c->low, c->span) ? 0 : port;
}

/* Forget an earlier bind, if it failed. Who is bound cannot be bound again. */
INLINE int begin_bind(const struct config *c, struct bpf_sock_addr *ctx, struct state *s, __u32 port) {
    if (s->flags & BOOKED)
        return 0;
    s->flags &= ~(OF_BIND | EPHEMERAL | CHOSEN | REPAIRED);
    s->flags |= share_flags(c, ctx, s) | (port ? 0 : EPHEMERAL);
    return 1;
}

/* Whether somebody who is in no context has an address that `*` stands for; the books have those who are. */
INLINE int is_taken(struct bpf_sock_addr *ctx, const struct config *c, const struct state *s,
                    const struct address *primary, __u32 port) {
    struct key key = {.port = port, .protocol = ctx->protocol};
    if (!port || c->flags & RESTORING)
        return 0;
#pragma clang loop unroll(disable)
    for (__u32 n = 0; n < MOST; n++) {
        struct bpf_sock_tuple tuple = {};
        struct bpf_sock *sk;
        __u32 size = sizeof(tuple.ipv6);
        if (n >= c->count)
            break;
        /* The kernel itself sees to the first one, and nobody else is at the loopback address. */
        if (c->entry[n].member.loopback || is_equal(&c->entry[n].address, primary))
            continue;
        if (!is_nth(c, s->flags, n, &key) || map_lookup(&books, &key))
            continue;
        if (c->entry[n].kind == WILD4) {
            size = sizeof(tuple.ipv4);
            tuple.ipv4.daddr = key.address.word[3];
            tuple.ipv4.dport = wire16(port);
        } else {
            __builtin_memcpy(tuple.ipv6.daddr, &key.address, sizeof(key.address));
            tuple.ipv6.dport = wire16(port);
        }
        sk = key.protocol == IPPROTO_TCP ? lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0)
                                         : lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
        if (sk) {
            sk_release(sk);
            return 1;
        }
    }
    return 0;
}

SEC("cgroup/bind4") int bind4(struct bpf_sock_addr *ctx) {
    struct config *c = the_config();
    struct state *s = state_of(ctx->sk);
    struct address a;
    __u32 port;
    if (!c || !s || netns_cookie(ctx) != c->netns)
        return refuse(EADDRNOTAVAIL);
    port = asked_port(c, ctx);
    if (!begin_bind(c, ctx, s, port))
        return refuse(EINVAL);
    if (!ctx->user_ip4) {
        s->flags |= WILD4;
        if (!first_of(c, WILD4, ctx->protocol, port, &a))
            return refuse(EADDRNOTAVAIL);
        if (is_taken(ctx, c, s, &a, port))
            return refuse(EADDRINUSE);
    } else {
        of_v4(&a, inwards4(c, ctx->user_ip4));
        if (!may_bind(&a, ctx->protocol, port))
            return refuse(EADDRNOTAVAIL);
    }
    s->primary = a;
    ctx->user_ip4 = a.word[3];
    return 1;
}

INLINE void read6(struct bpf_sock_addr *ctx, struct address *a) {
    a->word[0] = ctx->user_ip6[0];
    a->word[1] = ctx->user_ip6[1];
    a->word[2] = ctx->user_ip6[2];
    a->word[3] = ctx->user_ip6[3];
}

INLINE void write6(struct bpf_sock_addr *ctx, const struct address *a) {
    ctx->user_ip6[0] = a->word[0];
    ctx->user_ip6[1] = a->word[1];
    ctx->user_ip6[2] = a->word[2];
    ctx->user_ip6[3] = a->word[3];
}

INLINE int is_v6only(const struct config *c, const struct state *s) {
    if (s->flags & V6ONLY)
        return 1;
    return !(s->flags & V6BOTH) && c->flags & V6ONLY_DEFAULT;
}

SEC("cgroup/bind6") int bind6(struct bpf_sock_addr *ctx) {
    struct config *c = the_config();
    struct state *s = state_of(ctx->sk);
    __u32 port, kind = 0;
    struct address a;
    if (!c || !s || netns_cookie(ctx) != c->netns)
        return refuse(EADDRNOTAVAIL);
    port = asked_port(c, ctx);
    if (!begin_bind(c, ctx, s, port))
        return refuse(EINVAL);
    read6(ctx, &a);
    if (is_any6(&a)) {
        /* Dual-stack: a real IPv6 address would make the kernel set V6ONLY. */
        s->flags |= is_v6only(c, s) ? WILD6 : WILD;
        kind = s->flags & WILD4 ? WILD4 : WILD6;
    } else if (is_mapped(&a) && !a.word[3]) { /* ::ffff:0.0.0.0 */
        s->flags |= WILD4;
        kind = WILD4;
    } else if (is_mapped(&a)) {
        a.word[3] = inwards4(c, a.word[3]);
    } else if (is_loopback6(&a)) {
        a = c->loopback6;
    }
    if (kind) {
        if (!first_of(c, kind, ctx->protocol, port, &a))
            return refuse(EADDRNOTAVAIL);
        if (is_taken(ctx, c, s, &a, port))
            return refuse(EADDRINUSE);
    } else if (!may_bind(&a, ctx->protocol, port)) {
        return refuse(EADDRNOTAVAIL);
    }
    s->primary = a;
    write6(ctx, &a);
    return 1;
}

INLINE int enter_books(struct bpf_sock *ctx) {
    struct config *c = the_config();
    struct state *s = storage_get(&sockets, ctx, 0, 0);
    struct claim wanted = {};
    struct key key = {};
    __u64 cookie;
    if (!c || !s)
        return 1;
    if ((ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP) || s->flags & REPAIRED)
        return 1;
    key.port = ctx->src_port;
    key.protocol = ctx->protocol;
    wanted.id = c->id;
    wanted.flags = s->flags & (WILD | SHARE_PORT | SHARE_ADDRESS);
    wanted.primary = s->primary;
    s->port = key.port;
    s->entered = MOST;
    cookie = socket_cookie(ctx);
    if (!(s->flags & WILD)) {
        key.address = s->primary;
        if (claim(&key, &wanted, s, cookie))
            return refuse(EADDRINUSE);
        s->flags |= BOOKED;
        return 1;
    }
#pragma clang loop unroll(disable)
    for (__u32 n = 0; n < MOST; n++) {
        if (n >= c->count)
            break;
        if (!is_nth(c, s->flags, n, &key) || !claim(&key, &wanted, s, cookie))
            continue;
        s->entered = n;
        break;
    }
    if (s->entered == MOST) {
        s->flags |= BOOKED;
        return 1;
    }
    give_back_all(c, s, &key, s->entered);
    return refuse(EADDRINUSE);
}

SEC("cgroup/post_bind4") int post_bind4(struct bpf_sock *ctx) { return enter_books(ctx); }
SEC("cgroup/post_bind6") int post_bind6(struct bpf_sock *ctx) { return enter_books(ctx); }

SEC("cgroup/sock_release") int sock_release(struct bpf_sock *ctx) {
    struct config *c = the_config();
    struct state *s = storage_get(&sockets, ctx, 0, 0);
    struct key key = {};
    if (!c || !s || !(s->flags & BOOKED))
        return 1;
    key.port = s->port;
    key.protocol = ctx->protocol;
    s->flags &= ~BOOKED;
    if (!(s->flags & WILD)) {
        key.address = s->primary;
        give_back(&key, c->id);
        return 1;
    }
    give_back_all(c, s, &key, c->count);
    return 1;
}

/* -- making, options, listening ------------------------------------------------------------------------------------ */

SEC("cgroup/sock_create") int sock_create(struct bpf_sock *ctx) {
    struct config *c = the_config();
    __u32 protocol = ctx->protocol;
    if (!c || netns_cookie(ctx) != c->netns)
        return refuse(EPERM);
    /* The others have ways of binding that no hook sees (SCTP, MPTCP's subflows, DCCP, L2TP). */
    if ((ctx->type == SOCK_STREAM && protocol == IPPROTO_TCP) || (ctx->type == SOCK_DGRAM && protocol == IPPROTO_UDP)) {
        /* Hardly any is never bound or connected, and there the kernel's two allocations for it would be felt most. */
        storage_get(&sockets, ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);
        return 1;
    }
    if (ctx->type == SOCK_DGRAM && (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6))
        return 1;
    if (ctx->type == SOCK_RAW)
        return 1; /* what it sends and sees is confined by the last line */
    return refuse(EPROTONOSUPPORT);
}

SEC("cgroup/setsockopt") int setsockopt(struct bpf_sockopt *ctx) {
    __u8 *value = ctx->optval; /* byte by byte: where it lies may not be aligned */
    struct state *s;
    __u32 on = 0, off = 0;
    if (ctx->level == 41 /* IPPROTO_IPV6 */ && ctx->optname == 26 /* IPV6_V6ONLY */) {
        on = V6ONLY;
        off = V6BOTH;
    } else if ((ctx->level == 41 && ctx->optname == 49 /* IPV6_RECVPKTINFO */) ||
               (ctx->level == 0 && ctx->optname == 8 /* IP_PKTINFO */)) {
        on = PKTINFO;
    } else if (ctx->level == 1 /* SOL_SOCKET */ && ctx->optname == 15 /* SO_REUSEPORT */) {
        on = SHARE_PORT << AT_BIND;
    } else if (ctx->level == 1 && ctx->optname == 2 /* SO_REUSEADDR */) {
        on = SHARE_ADDRESS << AT_BIND;
    }
    if (on && (void *)(value + 4) <= ctx->optval_end && ctx->sk) {
        s = state_of(ctx->sk);
        if (s)
            s->flags = (s->flags & ~(on | off)) | (value[0] | value[1] | value[2] | value[3] ? on : off);
    }
    if (ctx->optlen > 4096)
        ctx->optlen = 0; /* the kernel takes the caller's own buffer */
    return 1;
}

INLINE void stop_sharing(const struct key *key, __u32 id) {
    struct claim *found = map_lookup(&books, key);
    if (found && found->id == id)
        __sync_fetch_and_and(&found->flags, ~SHARE_ADDRESS);
}

SEC("cgroup/sock_ops") int sock_ops(struct bpf_sock_ops *ctx) {
    struct config *c = the_config();
    struct bpf_sock *sk = ctx->sk;
    struct state *s;
    struct key key = {};
    if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB || !c || !sk)
        return 1;
    s = storage_get(&sockets, sk, 0, 0);
    if (!s || !(s->flags & BOOKED))
        return 1;
    key.port = s->port;
    key.protocol = IPPROTO_TCP;
    key.address = s->primary;
    /* Who listens does not share by SO_REUSEADDR any more. */
#pragma clang loop unroll(disable)
    for (__u32 n = 0; n < MOST; n++) {
        if (n >= c->count)
            break;
        if (s->flags & WILD ? is_nth(c, s->flags, n, &key) : !n)
            stop_sharing(&key, c->id);
    }
    if (!(s->flags & WILD))
        return 1;
    key.address = s->primary;
#pragma clang loop unroll(disable)
    for (__u32 n = 0; n < READERS; n++) {
        key.slot = n;
        if (!sock_hash_update(ctx, &listeners, &key, BPF_NOEXIST))
            break;
    }
    return 1;
}

/* -- sources ------------------------------------------------------------------------------------------------------ */

/* Of packets to `to`: itself if it is ours, an address of its subnet, else the first. 0: there is none. */
INLINE __u32 source4(const struct config *c, __u32 to) {
    struct address a;
    if (is_127(to))
        return c->loopback4;
    of_v4(&a, to);
    if (member_of(&a))
        return to;
#pragma clang loop unroll(disable)
    for (__u32 n = 0; n < MOST; n++) {
        const struct entry *e = &c->entry[n];
        if (n >= c->count)
            break;
        if (e->kind == WILD4 && !e->member.loopback && !((e->address.word[3] ^ to) & e->mask.word[3]))
            return e->address.word[3];
    }
    return c->first4;
}

INLINE int source6(const struct config *c, const struct address *to, struct address *source) {
    if (member_of(to)) {
        *source = *to;
        return 1;
    }
#pragma clang loop unroll(disable)
    for (__u32 n = 0; n < MOST; n++) {
        const struct entry *e = &c->entry[n];
        const struct address *a = &e->address, *mask = &e->mask;
        if (n >= c->count)
            break;
        if (e->kind != WILD6 || e->member.loopback)
            continue;
        if (((a->word[0] ^ to->word[0]) & mask->word[0]) | ((a->word[1] ^ to->word[1]) & mask->word[1]) |
            ((a->word[2] ^ to->word[2]) & mask->word[2]) | ((a->word[3] ^ to->word[3]) & mask->word[3]))
            continue;
        *source = *a;
        return 1;
    }
    *source = c->first6;
    return c->has6;
}

/* Where a destination of the program's really is; whether it may be reached. */
INLINE int destination4(const struct config *c, __u32 *to) {
    if (!*to)
        *to = wire32(127 << 24 | 1); /* 0.0.0.0 is this host */
    *to = inwards4(c, *to);
    /* That of a datagram socket which is connected to a mapped address comes by here again. */
    return !is_127(*to) || is_own_127(c, *to);
}

struct sockaddr4 {
    __u16 family, port;
    __u32 address;
    __u8 zero[8];
};

struct sockaddr6 {
    __u16 family, port;
    __u32 flowinfo;
    struct address address;
    __u32 scope;
};

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) {
    struct config *c = the_config();
    struct bpf_sock *sk = ctx->sk;
    struct state *s = state_of(sk);
    struct sockaddr4 from = {.family = AF_INET};
    __u32 to = ctx->user_ip4;
    if (!c || !s)
        return refuse(ENETUNREACH);
    if (!destination4(c, &to))
        return refuse(ENETUNREACH);
    ctx->user_ip4 = to;
    if (ctx->protocol == IPPROTO_TCP)
        s->flags |= CONNECTED;
    if (sk->src_ip4 && !(s->flags & CHOSEN))
        return 1;
    from.address = source4(c, to);
    if (!from.address)
        return refuse(ENETUNREACH);
    if (from.address == sk->src_ip4)
        return 1;
    if (sock_bind(ctx, &from, sizeof(from))) {
        /* A port that it has already keeps it where it is. */
        if (!sk->src_ip4)
            return refuse(EADDRNOTAVAIL);
        return 1;
    }
    s->flags |= CHOSEN;
    return 1;
}

INLINE int has_source6(const struct bpf_sock *sk) {
    return (sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | sk->src_ip6[3]) != 0;
}

SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx) {
    struct config *c = the_config();
    struct bpf_sock *sk = ctx->sk;
    struct state *s = state_of(sk);
    struct sockaddr6 from = {.family = AF_INET6};
    struct address to;
    int bound = has_source6(sk);
    if (!c || !s)
        return refuse(ENETUNREACH);
    read6(ctx, &to);
    if (is_any6(&to)) {
        to.word[3] = wire32(1);
    }
    if (is_mapped(&to)) {
        if (!destination4(c, &to.word[3]))
            return refuse(ENETUNREACH);
        of_v4(&from.address, source4(c, to.word[3]));
        if (!from.address.word[3])
            return refuse(ENETUNREACH);
    } else {
        if (is_loopback6(&to))
            to = c->loopback6;
        if (!source6(c, &to, &from.address))
            return refuse(ENETUNREACH);
    }
    write6(ctx, &to);
    if (ctx->protocol == IPPROTO_TCP)
        s->flags |= CONNECTED;
    if (bound && !(s->flags & CHOSEN))
        return 1;
    if (sock_bind(ctx, &from, sizeof(from))) {
        if (!bound)
            return refuse(EADDRNOTAVAIL);
        return 1;
    }
    s->flags |= CHOSEN;
    return 1;
}

/*
 * Whether the source of a datagram is what `*` became, and may be another: the program did not choose it, and no peer
 * knows the socket by it. That of a connected one is asked for as well when it sends to a mapped address.
 */
INLINE int is_of_any(const struct bpf_sock *sk, const struct state *s) {
    return s->flags & WILD && !(s->flags & PKTINFO) && sk->state != BPF_TCP_ESTABLISHED;
}

SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx) {
    struct config *c = the_config();
    struct bpf_sock *sk = ctx->sk;
    struct state *s = storage_get(&sockets, sk, 0, 0);
    __u32 to = ctx->user_ip4, from = ctx->msg_src_ip4;
    struct address a;
    if (!c || !destination4(c, &to))
        return refuse(ENETUNREACH);
    ctx->user_ip4 = to;
    /* A source that is not the program's own choice: none, ours, or what `*` became. */
    if (!from || (s && s->flags & CHOSEN) || (s && from == s->primary.word[3] && is_of_any(sk, s))) {
        from = source4(c, to);
        if (!from)
            return refuse(ENETUNREACH);
    }
    from = inwards4(c, from);
    of_v4(&a, from);
    if (!member_of(&a))
        return refuse(EADDRNOTAVAIL);
    ctx->msg_src_ip4 = from;
    return 1;
}

SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx) {
    struct config *c = the_config();
    struct bpf_sock *sk = ctx->sk;
    struct state *s = storage_get(&sockets, sk, 0, 0);
    struct address to, from;
    if (!c)
        return refuse(ENETUNREACH);
    read6(ctx, &to);
    if (is_mapped(&to))
        return refuse(ENETUNREACH); /* the kernel asks sendmsg4 for these */
    if (is_any6(&to))
        to.word[3] = wire32(1);
    if (is_loopback6(&to))
        to = c->loopback6;
    write6(ctx, &to);
    from.word[0] = ctx->msg_src_ip6[0];
    from.word[1] = ctx->msg_src_ip6[1];
    from.word[2] = ctx->msg_src_ip6[2];
    from.word[3] = ctx->msg_src_ip6[3];
    if (is_any6(&from) || is_mapped(&from) || (s && s->flags & CHOSEN) ||
        (s && is_equal(&from, &s->primary) && is_of_any(sk, s))) {
        if (!source6(c, &to, &from))
            return refuse(ENETUNREACH);
    } else if (is_loopback6(&from)) {
        from = c->loopback6;
    }
    if (!member_of(&from))
        return refuse(EADDRNOTAVAIL);
    ctx->msg_src_ip6[0] = from.word[0];
    ctx->msg_src_ip6[1] = from.word[1];
    ctx->msg_src_ip6[2] = from.word[2];
    ctx->msg_src_ip6[3] = from.word[3];
    return 1;
}

/* -- the names that the program expects ---------------------------------------------------------------------------- */

INLINE int show4(struct bpf_sock_addr *ctx) {
    struct config *c = the_config();
    if (c)
        ctx->user_ip4 = outwards4(c, ctx->user_ip4);
    return 1;
}

INLINE int show6(struct bpf_sock_addr *ctx) {
    struct config *c = the_config();
    struct address a;
    if (!c)
        return 1;
    read6(ctx, &a);
    if (is_mapped(&a)) {
        a.word[3] = outwards4(c, a.word[3]);
    } else if (is_equal(&a, &c->loopback6)) {
        a.word[0] = a.word[1] = a.word[2] = 0;
        a.word[3] = wire32(1);
    } else {
        return 1;
    }
    write6(ctx, &a);
    return 1;
}

/* Bound to `*`, and neither connected nor given a source by connect. */
INLINE int is_shown_wild(struct bpf_sock_addr *ctx) {
    struct bpf_sock *sk = ctx->sk;
    struct state *s = storage_get(&sockets, sk, 0, 0);
    return s && s->flags & WILD && !(s->flags & CONNECTED) && (sk->state == TCP_CLOSE || sk->state == TCP_LISTEN);
}

SEC("cgroup/getsockname4") int getsockname4(struct bpf_sock_addr *ctx) {
    if (is_shown_wild(ctx)) {
        ctx->user_ip4 = 0;
        return 1;
    }
    return show4(ctx);
}

SEC("cgroup/getsockname6") int getsockname6(struct bpf_sock_addr *ctx) {
    if (is_shown_wild(ctx)) {
        struct address any = {};
        struct state *s = storage_get(&sockets, ctx->sk, 0, 0);
        if (s && !(s->flags & WILD6))
            any.word[2] = MAPPED;
        write6(ctx, &any);
        return 1;
    }
    return show6(ctx);
}

SEC("cgroup/getpeername4") int getpeername4(struct bpf_sock_addr *ctx) { return show4(ctx); }
SEC("cgroup/getpeername6") int getpeername6(struct bpf_sock_addr *ctx) { return show6(ctx); }
SEC("cgroup/recvmsg4") int recvmsg4(struct bpf_sock_addr *ctx) { return show4(ctx); }
SEC("cgroup/recvmsg6") int recvmsg6(struct bpf_sock_addr *ctx) { return show6(ctx); }

/* -- the last line ------------------------------------------------------------------------------------------------- */

struct packet {
    struct address source, destination;
    __u32 source_port, destination_port;
    __u8 protocol;
    __u8 begins; /* a datagram, a SYN without ACK, or what we cannot read; the kernel itself answers with the others */
};

INLINE int read_ports(const struct __sk_buff *skb, __u32 at, struct packet *p) {
    __u16 ports[2] = {};
    __u8 tcp_flags = 0;
    p->begins = p->protocol != IPPROTO_ICMP && p->protocol != IPPROTO_ICMPV6;
    if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
        return 1;
    if (load_bytes(skb, at, ports, sizeof(ports)))
        return 0;
    p->source_port = wire16(ports[0]);
    p->destination_port = wire16(ports[1]);
    if (p->protocol == IPPROTO_TCP) {
        if (load_bytes(skb, at + 13, &tcp_flags, 1))
            return 0;
        p->begins = (tcp_flags & 0x12) == 2;
    }
    return 1;
}

INLINE int read_packet(const struct __sk_buff *skb, struct packet *p) {
    if (skb->protocol == wire16(0x0800)) {
        __u8 head[20];
        __u32 v4;
        if (load_bytes(skb, 0, head, sizeof(head)))
            return 0;
        __builtin_memcpy(&v4, head + 12, 4);
        of_v4(&p->source, v4);
        __builtin_memcpy(&v4, head + 16, 4);
        of_v4(&p->destination, v4);
        p->protocol = head[9];
        return read_ports(skb, (head[0] & 15) * 4, p);
    }
    if (skb->protocol == wire16(0x86dd)) {
        struct {
            __u32 first;
            __u16 size;
            __u8 next, hops;
            struct address source, destination;
        } head;
        if (load_bytes(skb, 0, &head, sizeof(head)))
            return 0;
        p->source = head.source;
        p->destination = head.destination;
        p->protocol = head.next;
        return read_ports(skb, sizeof(head), p);
    }
    return 0;
}

/* Of a connection, whose addresses were seen to when it began. Sockets of other kinds can be connected, too. */
INLINE int is_established(const struct __sk_buff *skb) {
    struct bpf_sock *sk = skb->sk;
    if (!sk || sk->state != BPF_TCP_ESTABLISHED)
        return 0;
    sk = full_sock(sk);
    return sk && sk->type == SOCK_STREAM;
}

SEC("cgroup_skb/egress") int egress(struct __sk_buff *skb) {
    struct config *c;
    struct packet p = {};
    struct member *m;
    if (is_established(skb))
        return 1;
    c = the_config();
    if (!c || !read_packet(skb, &p))
        return 0;
    m = member_of(&p.source);
    if (!m || !may_pass(c, m, p.protocol, p.source_port))
        return 0;
    m = member_of(&p.destination);
    if (m && m->loopback)
        skb->mark = MARK | c->id;
    return 1;
}

SEC("cgroup_skb/ingress") int ingress(struct __sk_buff *skb) {
    struct config *c;
    struct packet p = {};
    struct member *m;
    if (is_established(skb))
        return 1;
    c = the_config();
    if (!c || !read_packet(skb, &p))
        return 0;
    m = member_of(&p.destination);
    if (!m || !may_pass(c, m, p.protocol, p.destination_port))
        return 0;
    if (m->loopback && p.begins && skb->mark != (MARK | c->id))
        return 0;
    return 1;
}

/* -- the floor ----------------------------------------------------------------------------------------------------- */

INLINE int find_claim(struct key *key, struct address *primary, __u32 *flags) {
    struct claim *found = map_lookup(&books, key);
    if (!found || !(found->flags & WILD) || is_equal(&found->primary, &key->address))
        return 0;
    *primary = found->primary;
    *flags = found->flags;
    return 1;
}

SEC("floor/lookup") int lookup(struct bpf_sk_lookup *ctx) {
    struct key key = {};
    struct address primary;
    __u32 flags;
    if (ctx->family == AF_INET) {
        __u32 v4 = ctx->local_ip4;
        barrier_var(v4); /* else clang reads through a sum of ctx, which the verifier refuses */
        of_v4(&key.address, v4);
    } else {
        key.address.word[0] = ctx->local_ip6[0];
        key.address.word[1] = ctx->local_ip6[1];
        key.address.word[2] = ctx->local_ip6[2];
        key.address.word[3] = ctx->local_ip6[3];
    }
    key.port = ctx->local_port;
    key.protocol = ctx->protocol;
    if (!find_claim(&key, &primary, &flags))
        return SK_PASS;
    key.address = primary;
#pragma clang loop unroll(disable)
    for (__u32 n = 0; n < READERS; n++) {
        struct bpf_sock *sk;
        key.slot = n;
        sk = map_lookup(&listeners, &key);
        if (!sk)
            continue;
        sk_assign(ctx, sk, 0);
        sk_release(sk);
        return SK_PASS;
    }
    return SK_PASS;
}

SEC("floor/steer") int steer(struct __sk_buff *skb) {
    struct key key = {};
    struct address primary;
    struct bpf_sock_tuple tuple = {};
    struct bpf_sock *sk;
    __u16 ports[2];
    __u32 flags, size, at;
    __u8 head[40], part[8], fragments = 0;
    if (skb->protocol == wire16(0x0800)) {
        __u32 v4;
        if (load_relative(skb, 0, head, 20, BPF_HDR_START_NET) || head[9] != IPPROTO_UDP)
            return -1;
        if (head[7] | (head[6] & 0x1f))
            return -1; /* not the first fragment */
        fragments = head[6] & 0x20;
        __builtin_memcpy(&v4, head + 16, 4);
        of_v4(&key.address, v4);
        at = (head[0] & 15) * 4;
    } else if (skb->protocol == wire16(0x86dd)) {
        if (load_relative(skb, 0, head, 40, BPF_HDR_START_NET))
            return -1;
        __builtin_memcpy(&key.address, head + 24, 16);
        at = 40;
        if (head[6] == IPPROTO_FRAGMENT) {
            if (load_relative(skb, 40, part, sizeof(part), BPF_HDR_START_NET) || part[2] | (part[3] & 0xf8))
                return -1;
            head[6] = part[0];
            at = 48;
            fragments = 1;
        }
        if (head[6] != IPPROTO_UDP)
            return -1;
    } else {
        return -1;
    }
    if (load_relative(skb, at, ports, sizeof(ports), BPF_HDR_START_NET))
        return -1;
    key.port = wire16(ports[1]);
    key.protocol = IPPROTO_UDP;
    if (!find_claim(&key, &primary, &flags))
        return -1;
    if (is_mapped(&primary)) {
        tuple.ipv4.daddr = primary.word[3];
        tuple.ipv4.dport = ports[1];
        size = sizeof(tuple.ipv4);
    } else {
        __builtin_memcpy(tuple.ipv6.daddr, &primary, 16);
        tuple.ipv6.dport = ports[1];
        size = sizeof(tuple.ipv6);
    }
    /* No source: what is wanted is the socket that is not connected. */
    sk = lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
    if (!sk)
        return -1;
    /*
     * What cannot be told here is left to the lookup: putting fragments together forgets the socket, and one of an
     * SO_REUSEPORT group is not taken before Linux 6.6 (9c02bec95954).
     */
    if (fragments || sk_assign(skb, sk, 0)) {
        key.address = primary;
        map_update(&listeners, &key, sk, BPF_NOEXIST);
    }
    sk_release(sk);
    return -1; /* TCX_NEXT, TC_ACT_UNSPEC: other programs have their say */
}
