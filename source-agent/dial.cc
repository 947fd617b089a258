#include "source-agent/dial.h"

#include "common/base/text.h"
#include "transport/channel.h"
#include "transport/handshake.h"
#include "transport/link.h"

namespace godwit {

Result<std::unique_ptr<Channel>> dial_peer(const PeerAddress& peer, const std::string& migration_id,
                                           Deadline deadline) {
    const Address address = TRY(parse_address(peer.address));
    Security security;
    security.keys_dir = peer.keys_dir;
    if (peer.security == "tls")
        security.kind = Security::Kind::tls;
    else if (peer.security == "unix")
        security.kind = Security::Kind::unix_socket;
    else if (peer.security == "insecure")
        security.kind = Security::Kind::insecure;
    else
        return fail("unknown security " + printable(peer.security) + " of peer " + printable(peer.address),
                    "give --to with --keys or --insecure");
    auto link = TRY(connect_link(address, security, deadline));
    auto channel = std::make_unique<Channel>(std::move(link), Side::source);
    (void)TRY(say_hello(*channel, image::ROLE_RECOVER, migration_id, 0, deadline));
    return channel;
}

PeerAddress peer_address(const Address& address, const Security& security) {
    const char* kind = security.kind == Security::Kind::tls           ? "tls"
                       : security.kind == Security::Kind::unix_socket ? "unix"
                                                                      : "insecure";
    return {address.text(), kind, security.keys_dir};
}

}  // namespace godwit
