// Light, dark, or what the system says.

import { byId, say } from "./dom.js";

const NAMES = { auto: "◐ Auto", light: "○ Light", dark: "● Dark" };
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Follow the choice; `changed` is called when the colours are others. */
export function followTheme(changed) {
  const button = byId("theme");
  const chosen = () => (localStorage.getItem("theme") in NAMES ? localStorage.getItem("theme") : "auto");
  const show = () => {
    const choice = chosen();
    const effective = choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
    say(button, NAMES[choice]);
    button.setAttribute("aria-label", `${NAMES[choice].slice(2)} colours; press for others`);
    if (document.documentElement.dataset.theme === effective) return;
    document.documentElement.dataset.theme = effective;
    changed();
  };
  button.addEventListener("click", () => {
    const names = Object.keys(NAMES);
    localStorage.setItem("theme", names[(names.indexOf(chosen()) + 1) % names.length]);
    show();
  });
  dark.addEventListener("change", show);
  show();
}
