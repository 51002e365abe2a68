/* Small ends for the comparison: a TCP sink and source, a bulk client, HTTP clients with exact latencies, and a
 * relay that does nothing but read and write (the floor). Every mode is one thread unless it says otherwise.
 *
 *   load sink PORT                                  serves "UP n" and "DN n" (16 bytes, padded) per connection
 *   load bulk PORT up|dn BYTES STREAMS              moves BYTES on each of STREAMS connections
 *   load one  PORT SECS [HEADER]                    one keep-alive connection, one request after the other
 *   load rate PORT SECS CONNS PER_SEC [HEADER]      open loop: latency counts from the moment a request was due
 *   load floor LISTEN TO                            epoll relay, one connection each side
 *   load idle PORT N                                opens N connections, one request each, then holds them
 *
 * Results are one line of JSON on stdout.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) { perror(what); exit(1); }

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct sockaddr_in at(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static int dial(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in a = at(port);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a)) return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static int dial_or_die(int port) {
    int fd = dial(port);
    if (fd < 0) die("connect");
    return fd;
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in a = at(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 1024)) die("listen");
    return fd;
}

static void nonblock(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

/* ---- bulk ---- */

static int zeros = -1;
enum { ZEROS = 4 << 20 };

static int send_zeros(int fd, int64_t n) {
    while (n > 0) {
        off_t from = 0;
        ssize_t k = sendfile(fd, zeros, &from, n < ZEROS ? n : ZEROS);
        if (k <= 0) return -1;
        n -= k;
    }
    return 0;
}

static int64_t swallow(int fd, int64_t n) {
    int64_t got = 0;
    while (got < n) {
        int64_t want = n - got < (1 << 20) ? n - got : 1 << 20;
        ssize_t k = recv(fd, NULL, want, MSG_TRUNC);
        if (k <= 0) break;
        got += k;
    }
    return got;
}

static void *serve_one(void *arg) {
    int fd = (int)(intptr_t)arg;
    char command[17] = {0};
    while (recv(fd, command, 16, MSG_WAITALL) == 16) {
        int64_t n = atoll(command + 3);
        if (command[0] == 'U') {
            if (swallow(fd, n) < n || send(fd, "k", 1, MSG_NOSIGNAL) != 1) break;
        } else if (send_zeros(fd, n)) {
            break;
        }
    }
    close(fd);
    return NULL;
}

static void sink(int port) {
    int listener = listen_on(port);
    for (;;) {
        int fd = accept(listener, NULL, NULL), one = 1;
        pthread_t t;
        if (fd < 0) continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (pthread_create(&t, NULL, serve_one, (void *)(intptr_t)fd) == 0) pthread_detach(t);
    }
}

struct stream { int port, up; int64_t bytes, moved; };

static void *run_stream(void *arg) {
    struct stream *s = arg;
    int fd = dial_or_die(s->port);
    char command[17];
    snprintf(command, sizeof command, "%s %-12lld ", s->up ? "UP" : "DN", (long long)s->bytes);
    if (send(fd, command, 16, 0) != 16) die("send");
    if (s->up) {
        char k;
        if (send_zeros(fd, s->bytes) == 0 && recv(fd, &k, 1, 0) == 1) s->moved = s->bytes;
    } else {
        s->moved = swallow(fd, s->bytes);
    }
    close(fd);
    return NULL;
}

static void bulk(int port, int up, int64_t bytes, int streams) {
    struct stream s[64];
    pthread_t t[64];
    int64_t began = now_ns(), moved = 0;
    if (streams > 64) streams = 64;
    for (int i = 0; i < streams; i++) {
        s[i] = (struct stream){.port = port, .up = up, .bytes = bytes};
        pthread_create(&t[i], NULL, run_stream, &s[i]);
    }
    for (int i = 0; i < streams; i++) {
        pthread_join(t[i], NULL);
        moved += s[i].moved;
    }
    printf("{\"units\": %f, \"secs\": %f, \"errors\": %d}\n", moved / 1073741824.0, (now_ns() - began) / 1e9,
           moved != bytes * streams);
}

/* ---- latencies ---- */

static int64_t *samples;
static size_t sample_count, sample_room;

static void sample(int64_t ns) {
    if (sample_count == sample_room) {
        sample_room = sample_room ? sample_room * 2 : 1 << 16;
        samples = realloc(samples, sample_room * sizeof *samples);
        if (!samples) die("memory");
    }
    samples[sample_count++] = ns;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double quantile_us(double q) {
    return sample_count ? samples[(size_t)(q * (sample_count - 1))] / 1e3 : 0;
}

static void report(double secs, long errors) {
    qsort(samples, sample_count, sizeof *samples, by_value);
    printf("{\"units\": %zu, \"secs\": %f, \"errors\": %ld, \"p50_us\": %f, \"p99_us\": %f}\n", sample_count, secs,
           errors, quantile_us(.5), quantile_us(.99));
}

/* ---- HTTP/1 ---- */

struct response { char buf[16384]; size_t have; int64_t body_left; int in_body; };

/* Feeds what was read; 1 when a whole response has been seen, -1 when it is no 200 with a length. */
static int feed(struct response *r, const char *data, size_t n) {
    while (n > 0) {
        if (r->in_body) {
            size_t take = (int64_t)n < r->body_left ? n : (size_t)r->body_left;
            r->body_left -= take;
            data += take;
            n -= take;
            if (r->body_left == 0) { r->in_body = 0; r->have = 0; return n ? -1 : 1; }
            continue;
        }
        if (r->have + 1 >= sizeof r->buf) return -1;
        r->buf[r->have++] = *data++;
        n--;
        if (r->have >= 4 && memcmp(r->buf + r->have - 4, "\r\n\r\n", 4) == 0) {
            r->buf[r->have] = 0;
            char *length = strcasestr(r->buf, "content-length:");
            if (strncmp(r->buf + 9, "200", 3) || !length) return -1;
            r->body_left = atoll(length + 15);
            r->in_body = 1;
            if (r->body_left == 0) { r->in_body = 0; r->have = 0; return n ? -1 : 1; }
        }
    }
    return 0;
}

static size_t request(char *out, size_t room, const char *header) {
    return snprintf(out, room, "GET /small HTTP/1.1\r\nHost: app.test\r\nUser-Agent: load\r\nAccept: */*\r\n%s%s\r\n",
                    header ? header : "", header ? "\r\n" : "");
}

static void one(int port, double secs, const char *header) {
    char ask[2048], in[65536];
    size_t len = request(ask, sizeof ask, header);
    struct response r = {0};
    int fd = dial_or_die(port);
    int64_t end = now_ns() + secs * 1e9, began = now_ns(), warm = began + 200000000;
    while (now_ns() < end) {
        int64_t t = now_ns();
        int done = 0;
        if (send(fd, ask, len, MSG_NOSIGNAL) != (ssize_t)len) die("send");
        while (!done) {
            ssize_t n = recv(fd, in, sizeof in, 0);
            if (n <= 0) die("recv");
            done = feed(&r, in, n);
            if (done < 0) { fprintf(stderr, "unexpected response\n"); exit(1); }
        }
        if (t > warm) sample(now_ns() - t);
    }
    report((now_ns() - began) / 1e9, 0);
}

struct caller { int fd; int busy; int64_t due; struct response r; };

static void rate(int port, double secs, int conns, double per_sec, const char *header) {
    char ask[2048], in[65536];
    size_t len = request(ask, sizeof ask, header);
    struct caller *c = calloc(conns, sizeof *c);
    int *idle = calloc(conns, sizeof *idle), idle_count = 0, ep = epoll_create1(0);
    long errors = 0;
    for (int i = 0; i < conns; i++) {
        c[i].fd = dial_or_die(port);
        nonblock(c[i].fd);
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(ep, EPOLL_CTL_ADD, c[i].fd, &e);
        idle[idle_count++] = i;
    }
    int64_t began = now_ns(), end = began + secs * 1e9, warm = began + 300000000, step = 1e9 / per_sec, due = began;
    while (now_ns() < end) {
        while (idle_count && now_ns() >= due) {
            struct caller *k = &c[idle[--idle_count]];
            k->due = due;
            due += step;
            k->busy = 1;
            if (send(k->fd, ask, len, MSG_NOSIGNAL) != (ssize_t)len) errors++;
        }
        struct epoll_event ready[64];
        /* Spins: sleeping would add the timer's slack to every latency. */
        int n = epoll_wait(ep, ready, 64, 0);
        for (int i = 0; i < n; i++) {
            struct caller *k = &c[ready[i].data.u32];
            ssize_t got = recv(k->fd, in, sizeof in, 0);
            int done = got > 0 ? feed(&k->r, in, got) : -1;
            if (done < 0) { fprintf(stderr, "unexpected response\n"); exit(1); }
            if (done && k->busy) {
                if (k->due > warm) sample(now_ns() - k->due);
                k->busy = 0;
                idle[idle_count++] = ready[i].data.u32;
            }
        }
    }
    report((now_ns() - began) / 1e9, errors);
}

static void idle_connections(int port, int n) {
    char ask[2048], in[65536];
    size_t len = request(ask, sizeof ask, NULL);
    struct rlimit most = {n + 64, n + 64};
    setrlimit(RLIMIT_NOFILE, &most);
    for (int i = 0; i < n; i++) {
        struct response r = {0};
        int fd = dial_or_die(port), done = 0;
        if (send(fd, ask, len, 0) != (ssize_t)len) die("send");
        while (!done) {
            ssize_t k = recv(fd, in, sizeof in, 0);
            if (k <= 0 || (done = feed(&r, in, k)) < 0) { fprintf(stderr, "connection %d failed\n", i); exit(1); }
        }
    }
    printf("{\"units\": %d}\n", n);
    fflush(stdout);
    pause();
}

/* ---- floor ---- */

struct end { int fd; struct end *peer; };

static void relay_floor(int from, int to) {
    static char buf[65536];
    int listener = listen_on(from), ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, ready[64];
    nonblock(listener);
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(ep, ready, 64, -1);
        for (int i = 0; i < n; i++) {
            struct end *here = ready[i].data.ptr;
            if (!here) {
                int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), other = fd < 0 ? -1 : dial(to), yes = 1;
                if (other < 0) { if (fd >= 0) close(fd); continue; }
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                struct end *a = malloc(sizeof *a), *b = malloc(sizeof *b);
                *a = (struct end){fd, b};
                *b = (struct end){other, a};
                e.data.ptr = a;
                epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
                e.data.ptr = b;
                epoll_ctl(ep, EPOLL_CTL_ADD, other, &e);
                continue;
            }
            if (here->fd < 0) continue;
            /* Blocking writes: good enough for a floor, whose peers always read. Ends are leaked on purpose. */
            ssize_t k = recv(here->fd, buf, sizeof buf, 0);
            if (k > 0 && send(here->peer->fd, buf, k, MSG_NOSIGNAL) == k) continue;
            close(here->fd);
            close(here->peer->fd);
            here->fd = here->peer->fd = -1;
        }
    }
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    zeros = memfd_create("zeros", MFD_CLOEXEC);
    if (zeros < 0 || ftruncate(zeros, ZEROS)) die("memfd");
    const char *mode = argc > 2 ? argv[1] : "";
    int port = argc > 2 ? atoi(argv[2]) : 0;
    if (!strcmp(mode, "sink")) sink(port);
    else if (!strcmp(mode, "bulk") && argc > 5) bulk(port, argv[3][0] == 'u', atoll(argv[4]), atoi(argv[5]));
    else if (!strcmp(mode, "one") && argc > 3) one(port, atof(argv[3]), argc > 4 ? argv[4] : NULL);
    else if (!strcmp(mode, "rate") && argc > 5)
        rate(port, atof(argv[3]), atoi(argv[4]), atof(argv[5]), argc > 6 ? argv[6] : NULL);
    else if (!strcmp(mode, "floor") && argc > 3) relay_floor(port, atoi(argv[3]));
    else if (!strcmp(mode, "idle") && argc > 3) idle_connections(port, atoi(argv[3]));
    else { fprintf(stderr, "see the head of load.c\n"); return 64; }
    return 0;
}
