#pragma once
namespace godwit { class Skeleton; using PageTarget = Skeleton; }
