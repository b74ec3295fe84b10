// Conveniences only: the page shows everything without this script.
"use strict";
const all = (selector) => [...document.querySelectorAll(selector)];

for (const tools of all(".tools")) {
  tools.hidden = false;
  const chosen = {};
  tools.addEventListener("change", ({ target }) => {
    chosen[target.name] = target.value;
    const within = tools.parentElement;
    for (const row of within.querySelectorAll(".class"))
      row.hidden = Boolean(chosen.class) && row.dataset.class !== chosen.class;
    for (const strip of within.querySelectorAll(".strip"))
      strip.hidden = Boolean(chosen.method) && strip.dataset.method !== chosen.method;
  });
}

for (const button of all(".command button")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const code = button.parentElement.querySelector("code");
    const done = () => { button.textContent = "copied"; };
    const select = () => getSelection().selectAllChildren(code);
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, select);
    else select();
  });
}

const links = new Map(all("nav.side a").map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const link of links.values()) link.classList.remove("here");
    links.get(target.id)?.classList.add("here");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const section of all("section[id]")) watcher.observe(section);
