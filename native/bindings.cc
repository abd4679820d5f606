// The extension module. Only this file and native/python/ know Python; everything else is plain C++
// and is tested without it.
//
// Two rules hold here. Whatever may wait releases the GIL; and no thread of ours ever takes it:
// memory that Python lent us is given back by whichever Python call comes next, so that a busy
// interpreter cannot stall the data path.
#include "python/values.h"

namespace decentral {
namespace {

const char* ClassName(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUnreachable:
      return "UnreachableError";
    case ErrorKind::kNotDecentral:
      return "NotDecentralError";
    case ErrorKind::kVersionMismatch:
      return "VersionMismatchError";
    case ErrorKind::kIdentity:
      return "IdentityError";
    case ErrorKind::kSelf:
      return "SelfJoinError";
    case ErrorKind::kRefused:
      return "RefusedError";
    case ErrorKind::kProtocol:
      return "ProtocolError";
    case ErrorKind::kClosed:
    case ErrorKind::kSilent:
      return "PeerFailedError";
    case ErrorKind::kAborted:
      return "AbortedError";
    case ErrorKind::kMismatch:
      return "MismatchError";
    case ErrorKind::kConfig:
      return "ConfigError";
    case ErrorKind::kNone:
      break;
  }
  return "DecentralError";
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Links, collectives and kernels in C++. Use decentral.peer and decentral.collectives.";

  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const Error& e) {
      nb::object cls = nb::module_::import_("decentral.errors").attr(ClassName(e.kind));
      nb::object peer = nb::none();
      if (e.peer != PeerId{}) {
        peer = nb::module_::import_("decentral.types").attr("peer_id")(ToBytes(e.peer));
      }
      nb::object value = cls(ToText(e.text), "peer"_a = peer, "phase"_a = ToText(e.phase));
      PyErr_SetObject(cls.ptr(), value.ptr());
    }
  });

  BindLinks(m);
  BindCodecs(m);
  BindCollectives(m);
  BindKernels(m);
  BindFailpoints(m);
}

}  // namespace decentral
