"use strict";
// Marks the first section in view in the navigation. The page needs no script for anything else.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const visible = new Set();
const mark = (current) => {
  for (const [id, link] of links) {
    if (id === current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
};
const spy = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) visible.add(entry.target.id);
      else visible.delete(entry.target.id);
    }
    mark([...links.keys()].find((id) => visible.has(id)));
  },
  { rootMargin: "-15% 0px -80% 0px" },
);
mark(links.keys().next().value);
document.querySelectorAll("main > section").forEach((section) => spy.observe(section));
