/* The stable ABI does not depend on how this Python was configured, but sources rely on this definition. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
