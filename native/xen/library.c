/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "library.h"

#include <diffengine/hypervisor.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* libxenctrl has the series in its name and promises nothing beyond it. Only what was booted and tested is
 * listed. */
#define XEN_MAJOR 4
#define XEN_MINOR 17
#define PATH_BYTES 4096
#define NAME_OF(name) #name,
#define ADDRESS_OF(name) (void **)(void *)&library->name,

static const char *const library_names[XEN_LIBRARIES] = {"libxenctrl.so.4.17", "libxenforeignmemory.so.1",
                                                         "libxenevtchn.so.1"};
static const char *const package_names[XEN_LIBRARIES] = {"libxenmisc4.17", "libxenforeignmemory1",
                                                         "libxenevtchn1"};
static const char *const function_names[] = {XEN_CTRL_FUNCTIONS(NAME_OF) NULL,
                                             XEN_FOREIGN_MEMORY_FUNCTIONS(NAME_OF) NULL,
                                             XEN_EVENT_CHANNEL_FUNCTIONS(NAME_OF) NULL};

__attribute__((format(printf, 4, 5))) static int refuse(int error, char *text, size_t capacity,
                                                        const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, capacity, format, arguments);
    va_end(arguments);
    return error;
}

static int load(struct xen_library *library, const char *directory, char *error, size_t capacity)
{
    for (unsigned i = 0; i < XEN_LIBRARIES; i++) {
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "%s%s%s", directory ? directory : "", directory ? "/" : "",
                 library_names[i]);
        library->loaded[i] = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library->loaded[i])
            return refuse(-ENOENT, error, capacity,
                          "Xen's library %s can't be loaded (%s): install Xen's tools (Debian: %s)",
                          library_names[i], dlerror(), package_names[i]);
    }
    return 0;
}

static int find_functions(struct xen_library *library, char *error, size_t capacity)
{
    void **const addresses[] = {XEN_CTRL_FUNCTIONS(ADDRESS_OF) NULL,
                                XEN_FOREIGN_MEMORY_FUNCTIONS(ADDRESS_OF) NULL,
                                XEN_EVENT_CHANNEL_FUNCTIONS(ADDRESS_OF) NULL};
    unsigned in = 0;
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        if (!addresses[i]) {
            in++;
            continue;
        }
        *addresses[i] = dlsym(library->loaded[in], function_names[i]);
        if (!*addresses[i])
            return refuse(-ENOSYS, error, capacity,
                          "Xen's library %s lacks %s: it is not the one of Xen %d.%d (Debian: %s)",
                          library_names[in], function_names[i], XEN_MAJOR, XEN_MINOR, package_names[in]);
    }
    return 0;
}

int xen_library_open(struct xen_library *library, const char *directory, char *error, size_t capacity)
{
    memset(library, 0, sizeof *library);
    int status = load(library, directory, error, capacity);
    if (!status)
        status = find_functions(library, error, capacity);
    if (status)
        xen_library_close(library);
    return status;
}

void xen_library_close(struct xen_library *library)
{
    for (unsigned i = 0; i < XEN_LIBRARIES; i++)
        if (library->loaded[i])
            dlclose(library->loaded[i]);
    memset(library, 0, sizeof *library);
}

int xen_library_check(const struct xen_library *library, xc_interface *xc, char *error, size_t capacity)
{
    int version = library->xc_version(xc, XENVER_version, NULL);
    if (version < 0)
        return refuse(-EOPNOTSUPP, error, capacity, "Xen does not tell its version: %s", strerror(errno));
    if (version >> 16 != XEN_MAJOR || (version & 0xffff) != XEN_MINOR)
        return refuse(-EOPNOTSUPP, error, capacity, "Xen %d.%d runs here; supported is %d.%d", version >> 16,
                      version & 0xffff, XEN_MAJOR, XEN_MINOR);
    int events = library->xc_vm_event_get_version(xc);
    if (events < 0)
        return refuse(-EOPNOTSUPP, error, capacity, "Xen does not tell the version of its events: %s",
                      strerror(errno));
    if (events != (int)DE_VM_EVENT_VERSION)
        return refuse(-EOPNOTSUPP, error, capacity,
                      "Xen's events have interface version %d; this program knows version %u", events,
                      DE_VM_EVENT_VERSION);
    return 0;
}
