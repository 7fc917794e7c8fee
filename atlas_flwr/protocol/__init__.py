# SPDX-License-Identifier: Apache-2.0
"""What server and client say to each other; both import it, it imports neither."""
